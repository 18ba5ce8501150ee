//go:build race

package ledger

// raceDetector is whether the race detector slows everything down.
const raceDetector = true
