//go:build sweep

package sweep

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
)

// apiServer is as much of an API server as the plugin asks for: its node, the
// claims, and the slices that it publishes. It checks nothing.
type apiServer struct {
	*httptest.Server

	mu      sync.Mutex
	version int
	claims  map[string]resourceapi.ResourceClaim
	slices  map[string]resourceapi.ResourceSlice
	// watchers get every change of a slice.
	watchers map[chan watchEvent]bool
}

type watchEvent struct {
	Type   watch.EventType           `json:"type"`
	Object resourceapi.ResourceSlice `json:"object"`
}

const (
	group     = "resource.k8s.io/v1"
	slicesURL = "/apis/" + group + "/resourceslices"
	namespace = "team"
)

func newAPIServer(t *testing.T) *apiServer {
	a := &apiServer{claims: map[string]resourceapi.ResourceClaim{}, slices: map[string]resourceapi.ResourceSlice{}, watchers: map[chan watchEvent]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: r.PathValue("name"), UID: "node"}})
	})
	mux.HandleFunc("GET /apis/"+group+"/resourceclaims", func(w http.ResponseWriter, _ *http.Request) {
		list := resourceapi.ResourceClaimList{TypeMeta: metav1.TypeMeta{APIVersion: group, Kind: "ResourceClaimList"}}
		a.mu.Lock()
		list.Items = slices.Collect(maps.Values(a.claims))
		a.mu.Unlock()
		answer(w, list)
	})
	claim := func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		c, ok := a.claims[r.PathValue("name")]
		a.mu.Unlock()
		found(w, c, ok)
	}
	mux.HandleFunc("GET /apis/"+group+"/namespaces/{namespace}/resourceclaims/{name}", claim)
	// What the plugin tells of its devices is of no interest here.
	mux.HandleFunc("PATCH /apis/"+group+"/namespaces/{namespace}/resourceclaims/{name}/status", claim)
	mux.HandleFunc("GET "+slicesURL, a.list)
	mux.HandleFunc("GET "+slicesURL+"/{name}", func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		s, ok := a.slices[r.PathValue("name")]
		a.mu.Unlock()
		found(w, s, ok)
	})
	mux.HandleFunc("POST "+slicesURL, a.write)
	mux.HandleFunc("PUT "+slicesURL+"/{name}", a.write)
	mux.HandleFunc("DELETE "+slicesURL+"/{name}", a.delete)
	mux.HandleFunc("/", func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the plugin asks the API server for something new: %s %s", r.Method, r.URL)
	})
	a.Server = httptest.NewServer(mux)
	t.Cleanup(func() {
		a.CloseClientConnections() // Ends the watches.
		a.Close()
	})
	return a
}

func answer(w http.ResponseWriter, object any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(object) // Whoever has gone away needs no answer.
}

func fail(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason})
}

func found(w http.ResponseWriter, object any, ok bool) {
	if !ok {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	answer(w, object)
}

func (a *apiServer) list(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	events := make(chan watchEvent, 1024)
	a.mu.Lock()
	list := resourceapi.ResourceSliceList{TypeMeta: metav1.TypeMeta{APIVersion: group, Kind: "ResourceSliceList"}, ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(a.version)}}
	list.Items = slices.Collect(maps.Values(a.slices))
	if query.Get("watch") != "" {
		// Whoever names no version, or an old one, is told of all there is.
		if since, _ := strconv.Atoi(query.Get("resourceVersion")); since < a.version || query.Get("sendInitialEvents") == "true" {
			for _, s := range list.Items {
				events <- watchEvent{watch.Added, s}
			}
		}
		if query.Get("sendInitialEvents") == "true" {
			end := resourceapi.ResourceSlice{TypeMeta: metav1.TypeMeta{APIVersion: group, Kind: "ResourceSlice"}}
			end.ResourceVersion = strconv.Itoa(a.version)
			end.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
			events <- watchEvent{watch.Bookmark, end}
		}
		a.watchers[events] = true
	}
	a.mu.Unlock()
	if query.Get("watch") == "" {
		answer(w, list)
		return
	}
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.watchers, events)
	}()
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	for {
		_ = http.NewResponseController(w).Flush()
		select {
		case e := <-events:
			if encoder.Encode(e) != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

func (a *apiServer) write(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // The plugin has gone away.
	}
	s := resourceapi.ResourceSlice{}
	if _, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, &s); err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	event := watch.Modified
	if r.Method == http.MethodPost {
		event = watch.Added
		s.Name = fmt.Sprintf("%s%d", s.GenerateName, a.version)
		s.UID = types.UID(s.Name)
	} else if old, ok := a.slices[s.Name]; !ok || s.ResourceVersion != old.ResourceVersion {
		fail(w, http.StatusConflict, metav1.StatusReasonConflict)
		return
	}
	s.TypeMeta = metav1.TypeMeta{APIVersion: group, Kind: "ResourceSlice"}
	s.ResourceVersion = strconv.Itoa(a.version)
	a.slices[s.Name] = s
	a.tell(event, s)
	answer(w, s)
}

func (a *apiServer) delete(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.slices[r.PathValue("name")]
	if ok {
		a.version++
		s.ResourceVersion = strconv.Itoa(a.version)
		delete(a.slices, s.Name)
		a.tell(watch.Deleted, s)
	}
	found(w, s, ok)
}

func (a *apiServer) tell(event watch.EventType, s resourceapi.ResourceSlice) {
	for w := range a.watchers {
		w <- watchEvent{event, s}
	}
}

// allocate makes a claim that is allocated these devices.
func (a *apiServer) allocate(c *claim, nodeName string, name func(d device) string) {
	object := resourceapi.ResourceClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: group, Kind: "ResourceClaim"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: c.uid, UID: types.UID(c.uid)},
	}
	object.Status.Allocation = &resourceapi.AllocationResult{}
	for i, d := range c.devices {
		object.Status.Allocation.Devices.Results = append(object.Status.Allocation.Devices.Results, resourceapi.DeviceRequestAllocationResult{
			Request: fmt.Sprintf("r%d", i), Driver: driverName, Pool: nodeName, Device: name(d),
		})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.claims[c.uid] = object
}

func (a *apiServer) forget(uid string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.claims, uid)
}

// known are the claims that there are.
func (a *apiServer) known() map[string]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	uids := map[string]bool{}
	for uid := range a.claims {
		uids[uid] = true
	}
	return uids
}

// taints are the keys of the taints of a published device.
func (a *apiServer) taints(device string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var keys []string
	for _, s := range a.slices {
		for _, d := range s.Spec.Devices {
			for _, t := range d.Taints {
				if d.Name == device {
					keys = append(keys, t.Key+":"+string(t.Effect))
				}
			}
		}
	}
	return keys
}
