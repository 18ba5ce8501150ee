package schema

import (
	"embed"
	"slices"
)

//go:embed *.json
var schemas embed.FS

var schemaNames = []string{"order.packed.v1", "order.shipped.v1", "order.shipment-failed.v1"}

// Names returns the names of the events that have a JSON Schema.
func Names() []string { return slices.Clone(schemaNames) }

// JSONSchema returns the JSON Schema (draft 2020-12) of the event with the given
// name, and whether there is one. A packed event that its schema accepts is
// decoded without a violation, if its numbers are written in digits alone: a
// schema cannot tell 1.0 from 1.
func JSONSchema(name string) ([]byte, bool) {
	if !slices.Contains(schemaNames, name) {
		return nil, false
	}
	text, err := schemas.ReadFile(name + ".json")
	return text, err == nil
}
