package nvmlsim

import (
	"fmt"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

const mib = 1 << 20

func (d *device) GetUUID() (string, nvml.Return) {
	return read(d, "GetUUID", func(g *board) string { return g.UUID })
}

func (d *device) GetName() (string, nvml.Return) {
	return read(d, "GetName", func(g *board) string { return g.table.ProductName })
}

func (d *device) GetIndex() (int, nvml.Return) {
	return read(d, "GetIndex", func(*board) int { return d.index })
}

func (d *device) GetMinorNumber() (int, nvml.Return) {
	return read(d, "GetMinorNumber", func(g *board) int { return g.Minor })
}

func (d *device) GetSerial() (string, nvml.Return) { return read(d, "GetSerial", (*board).serial) }

func (d *device) GetBrand() (nvml.BrandType, nvml.Return) {
	return read(d, "GetBrand", func(*board) nvml.BrandType { return nvml.BRAND_NVIDIA })
}

func (d *device) GetArchitecture() (nvml.DeviceArchitecture, nvml.Return) {
	return read(d, "GetArchitecture", func(g *board) nvml.DeviceArchitecture {
		switch g.table.Architecture {
		case "Ampere":
			return nvml.DEVICE_ARCH_AMPERE
		case "Ada Lovelace":
			return nvml.DEVICE_ARCH_ADA
		case "Hopper":
			return nvml.DEVICE_ARCH_HOPPER
		default:
			return nvml.DEVICE_ARCH_UNKNOWN
		}
	})
}

func (d *device) GetCudaComputeCapability() (int, int, nvml.Return) {
	v, ret := read(d, "GetCudaComputeCapability", func(g *board) gpu.Version { return g.table.ComputeCapability })
	return v.Major, v.Minor, ret
}

func (d *device) GetMemoryInfo() (nvml.Memory, nvml.Return) {
	return read(d, "GetMemoryInfo", func(g *board) nvml.Memory {
		loads := g.Load.MemoryMiB
		for _, i := range g.Instances {
			loads += i.Load.MemoryMiB
		}
		return memory(g.table.MemoryMiB*mib, len(g.processes(func(Client) bool { return true })), loads)
	})
}

// memory is that of a board or instance with so many processes and so much load on it.
func memory(total uint64, processes int, loadMiB uint64) nvml.Memory {
	used := min(total, (uint64(processes)*512+loadMiB)*mib)
	return nvml.Memory{Total: total, Free: total - used, Used: used}
}

func (d *device) GetPciInfo() (nvml.PciInfo, nvml.Return) {
	return read(d, "GetPciInfo", func(g *board) nvml.PciInfo {
		info := nvml.PciInfo{
			Bus: uint32(bus(d.index)),
			// The device id is above NVIDIA's vendor id.
			PciDeviceId: uint32(g.table.PCIDevice)<<16 | 0x10DE,
		}
		// NVML writes eight digits of the domain and upper case.
		text := strings.ToUpper(busID(d.index))
		for i, c := range []byte("0000" + text) {
			info.BusId[i] = int8(c)
		}
		for i, c := range []byte(text) {
			info.BusIdLegacy[i] = int8(c)
		}
		return info
	})
}

func (d *device) GetNumGpuCores() (int, nvml.Return) {
	return read(d, "GetNumGpuCores", func(g *board) int {
		if v := g.table.ComputeCapability; v.Major == 8 && v.Minor == 0 {
			return g.table.Multiprocessors * 64
		}
		return g.table.Multiprocessors * 128
	})
}

func (d *device) GetBoardPartNumber() (string, nvml.Return) {
	return read(d, "GetBoardPartNumber", func(*board) string { return "simulated" })
}

func (d *device) GetVbiosVersion() (string, nvml.Return) {
	return read(d, "GetVbiosVersion", func(*board) string { return "00.00.00.00.00" })
}

func (d *device) GetPersistenceMode() (nvml.EnableState, nvml.Return) {
	return read(d, "GetPersistenceMode", func(*board) nvml.EnableState { return nvml.FEATURE_ENABLED })
}

func (d *device) GetComputeMode() (nvml.ComputeMode, nvml.Return) {
	return read(d, "GetComputeMode", func(*board) nvml.ComputeMode { return nvml.COMPUTEMODE_DEFAULT })
}

func (d *device) GetTemperature(nvml.TemperatureSensors) (uint32, nvml.Return) {
	return read(d, "GetTemperature", func(*board) uint32 { return 31 })
}

// GetPowerUsage is in milliwatts.
func (d *device) GetPowerUsage() (uint32, nvml.Return) {
	return read(d, "GetPowerUsage", func(*board) uint32 { return 70_000 })
}

// GetUtilizationRates is not supported on a board in MIG mode (nvml.h).
func (d *device) GetUtilizationRates() (nvml.Utilization, nvml.Return) {
	_, g, ret := d.look("GetUtilizationRates")
	if ret == nvml.SUCCESS && g.MIG {
		ret = nvml.ERROR_NOT_SUPPORTED
	}
	if ret != nvml.SUCCESS {
		return nvml.Utilization{}, ret
	}
	return nvml.Utilization{Gpu: uint32(g.Load.EnginePercent), Memory: uint32(g.Load.DRAMPercent)}, nvml.SUCCESS
}

func (d *device) GetEccMode() (nvml.EnableState, nvml.EnableState, nvml.Return) {
	on, ret := read(d, "GetEccMode", func(*board) nvml.EnableState { return nvml.FEATURE_ENABLED })
	return on, on, ret
}

// GetTotalEccErrors knows of uncorrectable errors since the last reset only.
func (d *device) GetTotalEccErrors(kind nvml.MemoryErrorType, since nvml.EccCounterType) (uint64, nvml.Return) {
	return read(d, "GetTotalEccErrors", func(g *board) uint64 {
		if kind != nvml.MEMORY_ERROR_TYPE_UNCORRECTED || since != nvml.VOLATILE_ECC {
			return 0
		}
		return g.UncorrectedECC
	})
}

// GetRemappedRows tells corrected rows, uncorrected rows, and whether a remapping is pending or has failed.
func (d *device) GetRemappedRows() (int, int, bool, bool, nvml.Return) {
	_, g, ret := d.look("GetRemappedRows")
	if ret != nvml.SUCCESS {
		return 0, 0, false, false, ret
	}
	// nvml.h: not on a board with MIG instances.
	if len(g.Instances) > 0 {
		return 0, 0, false, false, nvml.ERROR_NOT_SUPPORTED
	}
	return 0, 0, g.RemapPending, g.RemapFailed, nvml.SUCCESS
}

// Attributes of a whole board are told only where MIG is on.
func (d *device) GetAttributes() (nvml.DeviceAttributes, nvml.Return) {
	_, g, ret := d.look("GetAttributes")
	if ret != nvml.SUCCESS {
		return nvml.DeviceAttributes{}, ret
	}
	p, ok := profileByEnum(g.table, nvml.GPU_INSTANCE_PROFILE_7_SLICE)
	if !ok || !g.MIG {
		return nvml.DeviceAttributes{}, nvml.ERROR_NOT_SUPPORTED
	}
	return attributes(p, p.Multiprocessors, p.ComputeSlices), nvml.SUCCESS
}

func attributes(p gpu.Profile, multiprocessors, computeSlices int) nvml.DeviceAttributes {
	return nvml.DeviceAttributes{
		MultiprocessorCount: uint32(multiprocessors), SharedCopyEngineCount: uint32(p.CopyEngines), SharedDecoderCount: uint32(p.Decoders),
		SharedEncoderCount: uint32(p.Encoders), SharedJpegCount: uint32(p.JPEGEngines), SharedOfaCount: uint32(p.OFAEngines),
		GpuInstanceSliceCount: uint32(p.ComputeSlices), ComputeInstanceSliceCount: uint32(computeSlices), MemorySizeMB: liveMemoryMiB(p),
	}
}

// liveMemoryMiB is what an instance has: a little less than its profile says [inferred amount].
func liveMemoryMiB(p gpu.Profile) uint64 { return p.MemoryMiB - 64 }

// String names the board in logs.
func (d *device) String() string { return fmt.Sprintf("simulated GPU %d", d.index) }
