package schema

import (
	"embed"
	"encoding/json"
	"slices"
	"sync"
)

//go:embed *.json
var schemas embed.FS

var schemaNames = []string{"order.packed.v1", "order.shipped.v1", "order.shipment-failed.v1"}

// Names returns the names of the events that have a JSON Schema.
func Names() []string { return slices.Clone(schemaNames) }

// JSONSchema returns the JSON Schema (draft 2020-12) of the event with the given
// name, and whether there is one. A packed event that its schema accepts is
// decoded without a violation, if its ids are no larger than an int64 and its
// numbers are written in digits alone: a schema cannot tell 1.0 from 1. The other
// way round, whatever breaks no rule is accepted, but for an event_id or an
// occurred_at that is neither what it should be nor null: that counts as left
// out, and its producer had better know.
func JSONSchema(name string) ([]byte, bool) {
	if !slices.Contains(schemaNames, name) {
		return nil, false
	}
	text, err := schemas.ReadFile(name + ".json")
	return text, err == nil
}

// Reasons returns every reason that a shipment-failed event of this version may
// give, and Classes every class. They are read from its JSON Schema.
func Reasons() []string { return slices.Clone(failures().Properties.Reason.Enum) }

// Classes is like [Reasons].
func Classes() []string { return slices.Clone(failures().Properties.Class.Enum) }

// closedSet is a property of a JSON Schema that lists its values.
type closedSet struct {
	Enum []string `json:"enum"`
}

type failureSets struct {
	Properties struct {
		Reason closedSet `json:"reason"`
		Class  closedSet `json:"class"`
	} `json:"properties"`
}

var failures = sync.OnceValue(func() failureSets {
	text, _ := JSONSchema("order.shipment-failed.v1")
	var sets failureSets
	if err := json.Unmarshal(text, &sets); err != nil {
		panic(err) // the file is a part of the program
	}
	return sets
})
