package schema

import (
	"slices"
	"strings"
	"time"
)

// Header is one header of a record.
type Header struct {
	Key   string
	Value []byte
}

// Record is a record of a topic, as its log holds it.
type Record struct {
	Topic     string
	Partition int
	Offset    int64
	Time      time.Time // the record's own timestamp
	Key       []byte    // nil if the record has none
	Value     []byte    // nil is a tombstone
	Headers   []Header
}

// Header returns the value of the last header with the given key, and whether
// there is one.
func (r *Record) Header(key string) (string, bool) {
	for _, h := range slices.Backward(r.Headers) {
		if h.Key == key {
			return string(h.Value), true
		}
	}
	return "", false
}

// Structured reports whether the value is the envelope of a CloudEvent in
// structured mode. Some producers write the header as HTTP does, in capitals.
func (r *Record) Structured() bool {
	for _, h := range slices.Backward(r.Headers) {
		if strings.EqualFold(h.Key, "content-type") {
			mediaType, _, _ := strings.Cut(string(h.Value), ";")
			return strings.EqualFold(strings.TrimSpace(mediaType), "application/cloudevents+json")
		}
	}
	return false
}

// Source says where a packed event stood in its topic. It is part of a result
// event.
type Source struct {
	Topic     string `json:"topic"`
	Partition int    `json:"partition"`
	Offset    int64  `json:"offset"`
	EventID   string `json:"event_id"`
}
