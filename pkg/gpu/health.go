package gpu

// Whole stands for the GPU or compute instance of what concerns the whole board.
const Whole = -1

// Event is what a driver reports of a board unasked.
type Event struct {
	// GPU is the UUID of the board.
	GPU string
	// Xid is the number of an Xid error. 0 is something else that happened: a
	// reason to look at the boards.
	Xid uint64
	// GPUInstance and ComputeInstance are the ids of the instances that it is attributed to, or Whole.
	GPUInstance, ComputeInstance int
}

// Health is what a board answers when it is asked how it is.
type Health struct {
	// GPU is the UUID of the board.
	GPU string
	// Remapping is nil where the board does not tell: it has none, or, according to
	// nvml.h, it has MIG instances now.
	Remapping *RowRemapping
	// UncorrectedECC counts the uncorrectable memory errors since the board's last
	// reset. It is nil where the board does not tell.
	UncorrectedECC *uint64
	// Resets counts how often the session has found the board reset by somebody else.
	Resets int
}

// RowRemapping is how a board copes with broken rows of its memory.
type RowRemapping struct {
	// Pending: rows are set aside, and replaced by others with the next reset.
	Pending bool
	// Failed: a row could not be replaced, ever.
	Failed bool
}

// Usage is how busy an instance was between two measurements, and its memory.
type Usage struct {
	// EngineActive and DRAMActive are shares from 0 to 1: of the time in which
	// anything computed, and of the bandwidth of the memory. They are nil where they
	// are not known: with the first measurement, and on boards that do not count.
	EngineActive, DRAMActive *float64
	// MemoryUsed and MemoryFree are in bytes.
	MemoryUsed, MemoryFree uint64
}

// Vitals are what people like to see of a board. What it does not tell is nil.
type Vitals struct {
	// GPU is the UUID of the board.
	GPU string
	// Celsius is the temperature of the chip.
	Celsius *int
	// UsedBytes is how much of the board's memory is taken.
	UsedBytes *uint64
}
