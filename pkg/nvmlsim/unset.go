package nvmlsim

import (
	"reflect"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

var (
	returnType = reflect.TypeFor[nvml.Return]()
	// receivers are the handles that the library's flat functions take first: DeviceGetName(d) is d.GetName().
	receivers = map[string]reflect.Type{
		"Device":          reflect.TypeFor[nvml.Device](),
		"GpuInstance":     reflect.TypeFor[nvml.GpuInstance](),
		"ComputeInstance": reflect.TypeFor[nvml.ComputeInstance](),
		"EventSet":        reflect.TypeFor[nvml.EventSet](),
	}
)

// refuseUnset gives every function of a moq struct that is not set one that
// answers NOT_SUPPORTED, or hands on to the method of its handle, because moq's
// own would panic.
func refuseUnset[T any](mock *T) *T {
	v := reflect.ValueOf(mock).Elem()
	for i := range v.NumField() {
		field, f := v.Type().Field(i), v.Field(i)
		if f.Kind() != reflect.Func || !field.IsExported() || !f.IsNil() {
			continue
		}
		name := strings.TrimSuffix(field.Name, "Func")
		f.Set(reflect.MakeFunc(f.Type(), func(args []reflect.Value) []reflect.Value {
			if method, ok := onHandle(name, args); ok {
				return method.Call(args[1:])
			}
			return notSupported(f.Type())
		}))
	}
	return mock
}

func onHandle(name string, args []reflect.Value) (reflect.Value, bool) {
	for prefix, receiver := range receivers {
		method, ok := strings.CutPrefix(name, prefix)
		if ok && len(args) > 0 && args[0].Type() == receiver && !args[0].IsNil() {
			m := args[0].MethodByName(method)
			return m, m.IsValid()
		}
	}
	return reflect.Value{}, false
}

func notSupported(f reflect.Type) []reflect.Value {
	results := make([]reflect.Value, f.NumOut())
	for i := range results {
		if f.Out(i) == returnType {
			results[i] = reflect.ValueOf(nvml.ERROR_NOT_SUPPORTED)
		} else {
			results[i] = reflect.Zero(f.Out(i))
		}
	}
	return results
}
