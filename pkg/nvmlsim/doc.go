// Package nvmlsim is a simulated node with NVIDIA boards, below the line that
// NVML draws: a stateful nvml.Interface, and the host tree that goes with it
// (/proc, /dev, /sys and the driver's root).
//
// Its kernel is a state directory: the boards and instances live there, outlive
// the process as those of hardware do, and are the same for every process that
// opens the directory. A session, which is what Node.Interface gives, dies with
// its process. The outside world (other agents, failures, reboots) acts through
// the other methods of Node, as the command "kerf sim" does.
//
// No rule is kinder than the hardware's. The rules come from nvml.h and the MIG
// guide; what no source states outright is marked [inferred] where it stands, and
// Inferred lists all of it.
// Calls that are not simulated answer NOT_SUPPORTED.
//
// # Faults
//
// The specification's faults=FILE names a YAML or JSON file of what is to go wrong:
//
//	faults:
//	- name: the second creation on GPU 0 is cut off, with the instance made
//	  operation: CreateGpuInstanceWithPlacement
//	  gpu: 0
//	  call: 2
//	  after: true
//	  crash: true
//	- name: GPU 3 hangs
//	  gpu: 3
//	  hang: true
//
// A fault counts the calls that match it: of the operation, one of Operations,
// and of the board with the index gpu; what is not given matches any. It happens
// at the call-th of them (1 if not given) and at the times-1 ones that follow
// (times is 1 if not given), or at all that follow if it is forever. It happens before
// the call has its effect or, with after, when a call that changes a board has
// had its effect: then the calls with an effect are counted, and others are not.
//
// What happens is one of these; a fault with none only counts:
//
//   - return: IN_USE. The call answers that error of NVML.
//   - activation: IN_USE. SetMigMode succeeds and answers that as its activation
//     status: the mode is pending and not in effect.
//   - delay: 1.5s. The call takes so much longer.
//   - hang: true. The call does not return until the fault is removed from the
//     file, and then goes on.
//   - crash: true. The process is killed with SIGKILL.
//   - lose: true. The call's board is lost, until Node.Restore or a reboot.
//   - client: {pid: 77, command: nv-hostengine}. Somebody opens the call's board,
//     with the fields of Client.
//   - instance: {profile: 1g.10gb, placement: {start: 6, size: 1}}. Somebody makes
//     an instance on the call's board, at the driver's choice without a placement,
//     with a compute instance unless noComputeInstance is true.
//   - xid: {code: 79, gpuInstance: 1, computeInstance: 0}. The call's board reports
//     an Xid, of the whole board without the ids.
//
// Faults that match the same call happen in their order. What befalls the call's
// board counts only calls that name one: handles looked up by UUID, sessions and
// events do not. A call that the driver is not initialized for reaches no fault.
//
// The counts are kept in the state directory by the fault's name: all processes
// of a node count together, and a process that starts again goes on where the one
// before it was killed, so that a fault strikes once however often its victim
// comes back. A fault that is to strike anew gets a new name. Node.FaultCalls
// tells the counts.
//
// The file is read again when it has changed; replace it by renaming, so that
// nobody sees half of it. Where it is gone there are no faults. A file that is
// wrong, and a fault that cannot happen, such as an instance where one is, make
// the call fail with UNKNOWN and a line in the log: an experiment never fails silently.
//
// # Time
//
// With latency=typical the slow calls take as long as a driver is estimated to
// take; each estimate bears what it rests on, and none was measured. With
// lock=perGPU, the default, the driver serves one call a board at a time, with
// lock=global one a node: so a call that is slow or hangs keeps others waiting, in
// all processes. Without latency and faults there is nothing to wait for, and no lock.
//
// # Load
//
// Node.SetLoad says what runs on a board or a GPU instance. Counters of busy time
// go on with the clock, for GPM samples.
//
// # Ownership
//
// The package owns everything below the state directory and touches nothing
// beside it. Only programs and tests use it: what speaks to hardware gets it as
// an nvml.Interface.
package nvmlsim
