package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	metaapply "k8s.io/client-go/applyconfigurations/meta/v1"
	resourceapply "k8s.io/client-go/applyconfigurations/resource/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// fieldManager owns the devices that this driver writes into the status of claims.
const fieldManager = "kerf"

// DeviceData is what the status of a claim says about a device, in JSON.
type DeviceData struct {
	Type gpu.DeviceType `json:"type"`
	// UUID is that of the MIG instance, or of the GPU for what is none.
	UUID    string `json:"uuid"`
	GPUUUID string `json:"gpuUUID"`
	// Profile to ComputeInstanceID are those of a MIG instance.
	Profile           string         `json:"profile,omitempty"`
	Placement         *gpu.Placement `json:"placement,omitempty"`
	GPUInstanceID     *int           `json:"gpuInstanceID,omitempty"`
	ComputeInstanceID *int           `json:"computeInstanceID,omitempty"`
	// PreparedAt tells this use of the device from earlier ones: the driver gives ids and UUIDs again.
	PreparedAt metav1.Time `json:"preparedAt"`
}

// Claims reads the records of claims, one by one and all. See package journal.
type Claims interface {
	Claim(uid string) (*journal.Claim, error)
	Claims() ([]*journal.Claim, error)
}

// Status writes into claims, after the kubelet has been answered, what they were
// prepared with. What is written is read from the journal then, so that it does
// not matter how often, when or by which process that is done.
type Status struct {
	client kubernetes.Interface
	driver string
	claims Claims
	queue  workqueue.TypedRateLimitingInterface[claimKey]
}

type claimKey struct {
	types.NamespacedName
	uid string
}

// NewStatus makes the writer of a driver.
func NewStatus(client kubernetes.Interface, driver string, claims Claims) *Status {
	return &Status{
		client: client, driver: driver, claims: claims,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[claimKey](100*time.Millisecond, time.Minute)),
	}
}

// Changed says that a claim was prepared or released.
func (s *Status) Changed(namespace, name, uid string) {
	s.queue.Add(claimKey{types.NamespacedName{Namespace: namespace, Name: name}, uid})
}

// Run writes until the context ends. It begins with all claims that are prepared,
// because an earlier process may have been killed before it wrote.
func (s *Status) Run(ctx context.Context) {
	stop := context.AfterFunc(ctx, s.queue.ShutDown)
	defer stop()
	// What cannot be read has nothing to be written; recovery looks after it.
	claims, _ := s.claims.Claims()
	for _, c := range claims {
		s.Changed(c.Namespace, c.Name, c.UID)
	}
	for {
		key, shutdown := s.queue.Get()
		if shutdown {
			return
		}
		if err := s.write(ctx, key); err != nil {
			klog.FromContext(ctx).Error(err, "The status of a claim could not be written; it is tried again", "claim", key.NamespacedName)
			s.queue.AddRateLimited(key)
		} else {
			s.queue.Forget(key)
		}
		s.queue.Done(key)
	}
}

// write makes the claim's status what its record says. A claim that is gone, or
// that is another of its name, has nothing of ours in its status.
func (s *Status) write(ctx context.Context, key claimKey) error {
	record, err := s.claims.Claim(key.uid)
	if errors.Is(err, journal.ErrNotFound) {
		record = &journal.Claim{}
	} else if err = tolerated(err); err != nil {
		return err
	}
	status := resourceapply.ResourceClaimStatus()
	if record.State == journal.ClaimPrepared {
		for _, d := range record.Devices {
			device, err := s.device(record, d)
			if err != nil {
				return err
			}
			status.WithDevices(device)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	// The UID keeps it from a new claim of the same name, and a claim that is gone from being made again.
	claim := resourceapply.ResourceClaim(key.Name, key.Namespace).WithUID(types.UID(key.uid)).WithStatus(status)
	_, err = s.client.ResourceV1().ResourceClaims(key.Namespace).ApplyStatus(ctx, claim, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err) && record.State != journal.ClaimPrepared {
		return nil
	}
	return err
}

func (s *Status) device(c *journal.Claim, d journal.ClaimDevice) (*resourceapply.AllocatedDeviceStatusApplyConfiguration, error) {
	data, err := json.Marshal(describe(c, d))
	if err != nil {
		return nil, err
	}
	device := resourceapply.AllocatedDeviceStatus().WithDriver(s.driver).WithPool(d.Pool).WithDevice(d.Name).
		WithData(runtime.RawExtension{Raw: data}).
		WithConditions(metaapply.Condition().WithType("Ready").WithStatus(metav1.ConditionTrue).WithReason("Prepared").
			WithMessage(fmt.Sprintf("prepared: %s", d.Device)).WithLastTransitionTime(metav1.NewTime(c.PreparedAt)))
	for _, condition := range d.Conditions {
		device.WithConditions(metaapply.Condition().WithType(condition.Type).WithStatus(metav1.ConditionTrue).WithReason(condition.Type).
			WithMessage(condition.Message).WithLastTransitionTime(metav1.NewTime(c.PreparedAt)))
	}
	if d.ShareID != "" {
		device.WithShareID(d.ShareID)
	}
	return device, nil
}

func describe(c *journal.Claim, d journal.ClaimDevice) DeviceData {
	data := DeviceData{Type: d.Device.Type, UUID: d.Device.GPU, GPUUUID: d.Device.GPU, PreparedAt: metav1.NewTime(c.PreparedAt)}
	if i := d.Instance; i != nil {
		data.Profile, data.Placement, data.GPUInstanceID = i.Profile, &i.Placement, &i.ID
		if len(i.Compute) > 0 {
			data.UUID, data.ComputeInstanceID = i.Compute[0].UUID, &i.Compute[0].ID
		}
	}
	return data
}
