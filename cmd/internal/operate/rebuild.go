package operate

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"packship/cmd/internal/life"
	"packship/schema"
)

// redriveMark is the header and the field of a packed event that name the failed
// result which it was made from.
const redriveMark = life.RedriveMark

// Change gives a field of a packed event another value; none removes the field.
type Change struct {
	Field string
	Value json.RawMessage
}

// redriveID is the event id of the packed event that a failed result is sent
// again as. It depends on the result alone, so that sending it twice is sending
// the same event.
func redriveID(resultID string) string { return life.RedrivePrefix + resultID }

// rebuild makes a packed event of the one that has led to a failure: the same in
// every field, also those that packship does not know, but for the changes, the
// event id, and the mark. It keeps the form of the event, with or without an
// envelope, and its headers.
func rebuild(rec *schema.Record, resultID string, changes []Change) (*schema.Record, error) {
	id := redriveID(resultID)
	changes = append([]Change{{"event_id", text(id)}, {redriveMark, text(resultID)}}, changes...)
	value, err := rewrite(rec, id, changes)
	if err != nil {
		return nil, fmt.Errorf("rebuild %s/%d at %d: %w", rec.Topic, rec.Partition, rec.Offset, err)
	}
	made := &schema.Record{Topic: rec.Topic, Key: rec.Key, Value: value}
	for _, h := range rec.Headers {
		switch h.Key {
		case "ce_id":
			h.Value = []byte(id)
		case redriveMark:
			continue
		}
		made.Headers = append(made.Headers, h)
	}
	made.Headers = append(made.Headers, schema.Header{Key: redriveMark, Value: []byte(resultID)})
	return made, nil
}

// rewrite changes the event in the value of a record.
func rewrite(rec *schema.Record, id string, changes []Change) ([]byte, error) {
	if !rec.Structured() {
		return change(rec.Value, changes)
	}
	envelope, err := parseObject(rec.Value)
	if err != nil {
		return nil, err
	}
	envelope.set("id", text(id))
	if raw := envelope.get("data"); raw != nil {
		// A producer without a JSON data content type may have put the event
		// into a string.
		var inner string
		if json.Unmarshal(raw, &inner) == nil {
			event, err := change([]byte(inner), changes)
			if err != nil {
				return nil, err
			}
			envelope.set("data", text(string(event)))
			return envelope.encode(), nil
		}
		event, err := change(raw, changes)
		if err != nil {
			return nil, err
		}
		envelope.set("data", event)
		return envelope.encode(), nil
	}
	var packed []byte
	if err := json.Unmarshal(envelope.get("data_base64"), &packed); err != nil {
		return nil, errors.New("the envelope holds no event")
	}
	event, err := change(packed, changes)
	if err != nil {
		return nil, err
	}
	envelope.set("data_base64", text(base64.StdEncoding.EncodeToString(event)))
	return envelope.encode(), nil
}

// change returns a JSON object with other values of some fields.
func change(data []byte, changes []Change) ([]byte, error) {
	o, err := parseObject(data)
	if err != nil {
		return nil, err
	}
	for _, c := range changes {
		if c.Value == nil {
			o.remove(c.Field)
			continue
		}
		o.set(c.Field, c.Value)
	}
	return o.encode(), nil
}

// object is a JSON object whose members keep their order and their bytes.
type object []member

type member struct {
	name string
	raw  json.RawMessage
}

func parseObject(data []byte) (object, error) {
	dec := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))))
	if start, err := dec.Token(); err != nil || start != json.Delim('{') {
		return nil, errors.New("it is no JSON object")
	}
	var o object
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		text, ok := name.(string)
		if !ok {
			return nil, errors.New("it is no JSON object")
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, err
		}
		o = append(o, member{text, raw})
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return nil, errors.New("it is no JSON object")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return o, nil
}

// get returns the value of a member, nil if there is none or it is null. Of two
// with one name the last counts, as for everybody who reads JSON into a map.
func (o object) get(name string) json.RawMessage {
	for _, m := range slices.Backward(o) {
		if m.name == name {
			if string(m.raw) == "null" {
				return nil
			}
			return m.raw
		}
	}
	return nil
}

// set gives a member a value, where it stands or else at the end.
func (o *object) set(name string, raw json.RawMessage) {
	at := slices.IndexFunc(*o, func(m member) bool { return m.name == name })
	if at < 0 {
		*o = append(*o, member{name, raw})
		return
	}
	(*o)[at].raw = raw
	rest := slices.DeleteFunc(slices.Clone((*o)[at+1:]), func(m member) bool { return m.name == name })
	*o = append((*o)[:at+1], rest...)
}

func (o *object) remove(name string) {
	*o = slices.DeleteFunc(*o, func(m member) bool { return m.name == name })
}

func (o object) encode() []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(text(m.name))
		b.WriteByte(':')
		b.Write(m.raw)
	}
	b.WriteByte('}')
	return b.Bytes()
}

// text returns a JSON string.
func text(s string) json.RawMessage {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string is always encoded
	}
	return bytes.TrimSpace(b.Bytes())
}
