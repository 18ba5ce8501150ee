package producer

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
)

// nextSpan returns the traceparent of a new span of the trace that a traceparent
// header belongs to (W3C Trace Context, level 2), and whether there is one. The
// header of a later version is understood as far as this one goes, as the
// specification asks.
func nextSpan(traceparent string) (string, bool) {
	const (
		size     = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		ff       = "ff"
		zeroID   = "0000000000000000"
		keepBits = 0x03 // sampled, and whether the trace id is random
	)
	if len(traceparent) < size || len(traceparent) > size && (traceparent[:2] == "00" || traceparent[size] != '-') {
		return "", false
	}
	parts := strings.Split(traceparent[:size], "-")
	if len(parts) != 4 || len(parts[0]) != 2 || len(parts[1]) != 32 || len(parts[2]) != 16 || len(parts[3]) != 2 {
		return "", false
	}
	for _, part := range parts {
		if strings.Trim(part, "0123456789abcdef") != "" {
			return "", false
		}
	}
	if parts[0] == ff || parts[1] == zeroID+zeroID || parts[2] == zeroID {
		return "", false
	}
	flags, err := hex.DecodeString(parts[3])
	if err != nil {
		return "", false
	}
	span := zeroID
	for span == zeroID {
		span = fmt.Sprintf("%016x", rand.Uint64())
	}
	return "00-" + parts[1] + "-" + span + "-" + hex.EncodeToString([]byte{flags[0] & keepBits}), true
}
