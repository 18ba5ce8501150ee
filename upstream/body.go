package upstream

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// body is an answer of the API, as far as it can be read. The API promises
// little about the types of its fields, so scalars are read leniently: a number
// may be a string. What is not there is told apart from zero.
type body struct {
	code    int64
	hasCode bool
	msg     string
	msec    int64
	time    int64
	url     string // where a seller authorises the shop; for the operator only

	// errorStatus is the HTTP status that an error body of the API's framework
	// carries, 0 if it is no such body. Its code is of no meaning, often 0.
	errorStatus int

	// success is what the answer says of the shipment: of every element of its
	// data, if it has several.
	success  tally
	withheld int64
}

// tally counts what the elements of an answer say of success.
type tally struct {
	yes, no, silent int
	// denied is true if the answer as a whole denies success.
	denied bool
}

// allTrue reports whether every element says that it succeeded.
func (t tally) allTrue() bool { return t.yes > 0 && t.no == 0 && t.silent == 0 && !t.denied }

// parseBody reads an answer. It reports false if that is no JSON object.
func parseBody(raw []byte) (body, bool) {
	fields, ok := jsonObject(bytes.TrimPrefix(raw, []byte("\xef\xbb\xbf")))
	if !ok {
		return body{}, false
	}
	var b body
	b.code, b.hasCode = jsonInt(fields["code"])
	b.msg, _ = jsonText(fields["msg"])
	b.msec, _ = jsonInt(fields["msec"])
	b.time, _ = jsonInt(fields["time"])
	b.url, _ = jsonText(fields["url"])
	b.errorStatus = errorStatus(fields)
	if b.errorStatus == 0 {
		// Some set the framework to wrap its errors like other answers.
		if inner, ok := jsonObject(fields["data"]); ok {
			if b.errorStatus = errorStatus(inner); b.errorStatus != 0 {
				fields = inner
			}
		}
	}
	if b.errorStatus != 0 && b.msg == "" {
		b.msg, _ = jsonText(fields["message"])
	}
	b.readData(fields)
	return b, true
}

// errorStatus returns the HTTP status in an error body of the API's framework,
// 0 if fields are none.
func errorStatus(fields map[string]json.RawMessage) int {
	_, named := fields["name"]
	_, told := fields["message"]
	status, ok := jsonInt(fields["status"])
	if ok && status >= 300 && status <= 599 && (named || told) {
		return int(status)
	}
	return 0
}

// readData reads data, which is an array of objects, or one object.
func (b *body) readData(fields map[string]json.RawMessage) {
	if ok, found := jsonBool(fields["success"]); found && !ok {
		b.success.denied = true
	}
	var elements []json.RawMessage
	if data := fields["data"]; len(data) > 0 && data[0] == '{' {
		elements = []json.RawMessage{data}
	} else if len(data) > 0 && data[0] == '[' {
		if json.Unmarshal(data, &elements) != nil {
			return // cannot be: the whole was valid JSON
		}
	}
	if len(elements) == 0 {
		b.withheld = amount(fields["withholding_money"])
	}
	for _, raw := range elements {
		element, _ := jsonObject(raw)
		switch ok, found := jsonBool(element["success"]); {
		case !found:
			b.success.silent++
		case ok:
			b.success.yes++
		default:
			b.success.no++
		}
		b.withheld = min(b.withheld+amount(element["withholding_money"]), maxAmount)
	}
}

// maxAmount bounds a sum of points, so that a nonsensical answer cannot
// overflow it.
const maxAmount = math.MaxInt32

func amount(raw json.RawMessage) int64 {
	n, _ := jsonInt(raw)
	return min(max(n, 0), maxAmount)
}

// jsonObject reads a JSON object. Keys are matched exactly, unlike those of a
// struct.
func jsonObject(raw []byte) (map[string]json.RawMessage, bool) {
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil {
		return nil, false
	}
	return fields, fields != nil
}

// jsonText returns the text of a JSON string, or a number as it is written.
func jsonText(raw json.RawMessage) (string, bool) {
	if len(raw) == 0 {
		return "", false
	}
	if raw[0] != '"' {
		return string(raw), raw[0] == '-' || (raw[0] >= '0' && raw[0] <= '9')
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}

// jsonInt returns a whole number, also from a string of its digits.
func jsonInt(raw json.RawMessage) (int64, bool) {
	s, ok := jsonText(raw)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	return n, err == nil
}

// jsonBool returns a truth value, also from 0 and 1 and from strings.
func jsonBool(raw json.RawMessage) (value, ok bool) {
	if len(raw) == 0 {
		return false, false
	}
	switch strings.ToLower(strings.Trim(string(raw), `"`)) {
	case "true", "1":
		return true, true
	case "false", "0":
		return false, true
	}
	return false, false
}

// cut returns a text of at most n characters.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n]) + "…"
}
