package nvmlsim

// Inferred are the rules of the simulation that no source states outright, each
// after the file that has its mark: what real hardware can confirm or refute.
func Inferred() []string {
	return []string{
		"pkg/nvmlsim/board.go: the multiprocessors of a GPU instance are split evenly among its compute instances, and odd ones stay unused",
		"pkg/nvmlsim/board.go: a compute instance lies at a multiple of its size",
		"pkg/nvmlsim/board.go: GPU instance ids: 0 for 8 memory slices, 1 and 2 for 4, 3 to 6 for 2, 7 to 14 for 1, the lowest free one first",
		"pkg/nvmlsim/device.go: the handle of a board that was reset since answers INVALID_ARGUMENT",
		"pkg/nvmlsim/deviceinfo.go: an instance has 64 MiB less than its profile says",
		"pkg/nvmlsim/gpm.go: a GPM sample of a GPU instance that is not there answers NOT_FOUND",
		"pkg/nvmlsim/gpm.go: GPM samples of different instances answer INVALID_ARGUMENT",
		"pkg/nvmlsim/gpm.go: GPM samples at most 100 ms apart have NO_DATA for every metric",
		"pkg/nvmlsim/load.go: the counters of a GPU instance begin at zero with it, and metrics over two lives of one are nonsense without an error",
		"pkg/nvmlsim/mig.go: a board that comes up on NVSwitches is seen joining the fabric three times",
		"pkg/nvmlsim/mig.go: an impossible placement answers INVALID_ARGUMENT",
		"pkg/nvmlsim/mig.go: the driver's own choice of a placement is the last that is free",
		"pkg/nvmlsim/mig.go: the index of a MIG device stays with it, and a destroyed one leaves a hole",
		"pkg/nvmlsim/mig.go: a change of the MIG mode changes the board's minor number",
		"pkg/nvmlsim/mig.go: a reset gives back the default time slice and compute mode",
		"pkg/nvmlsim/session.go: the bare handle of another session stands in the way of a change of the MIG mode",
		"pkg/nvmlsim/session.go: a search by UUID walks the boards in order and fails at the first that is lost",
		"pkg/gpu/board.go: memory of 1g.20gb, 2g.20gb on H100 SXM5 80GB: 20096 MiB",
		"pkg/gpu/board.go: memory of 1g.24gb, 2g.24gb and 7g.94gb on H100 NVL 94GB: 22144 and 95360 MiB",
		"pkg/gpu/board.go: memory of 7g.141gb on H200 141GB: 143360 MiB",
		"pkg/nvml/mode.go: a board on NVSwitches joins the fabric again after a change of the MIG mode",
	}
}
