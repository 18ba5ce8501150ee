package upstreamtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"mime/multipart"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Field is one field of a form, as it came.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// fields is a form in the order of the wire.
type fields []Field

// value returns what PHP would see: the last value of a repeated field, "" for
// an absent one.
func (f fields) value(name string) string {
	for _, field := range slices.Backward(f) {
		if field.Name == name {
			return field.Value
		}
	}
	return ""
}

// maxFields is PHP's max_input_vars: what comes after is not looked at.
const maxFields = 1000

var (
	errNotMultipart = errors.New("upstreamtest: the body is not multipart/form-data")
	errNoBoundary   = errors.New("upstreamtest: the content type has no boundary")
)

// parseForm reads a request body. A form in URL encoding is accepted only where
// urlencoded is true. File parts are skipped.
func parseForm(contentType string, body []byte, urlencoded bool) (fields, error) {
	mediaType, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, fmt.Errorf("upstreamtest: content type: %w", err)
	}
	switch {
	case mediaType == "multipart/form-data":
		if params["boundary"] == "" {
			return nil, errNoBoundary
		}
		return parseMultipart(params["boundary"], body)
	case mediaType == "application/x-www-form-urlencoded" && urlencoded:
		return parseURLEncoded(string(body))
	default:
		return nil, errNotMultipart
	}
}

func parseMultipart(boundary string, body []byte) (fields, error) {
	r := multipart.NewReader(bytes.NewReader(body), boundary)
	var form fields
	for {
		part, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return form, nil
		}
		if err != nil {
			return nil, fmt.Errorf("upstreamtest: multipart body: %w", err)
		}
		name := part.FormName()
		value, err := io.ReadAll(part)
		if err != nil {
			return nil, fmt.Errorf("upstreamtest: part %q: %w", name, err)
		}
		if name == "" || isFile(part) || len(form) == maxFields {
			continue
		}
		form = append(form, Field{name, string(value)})
	}
}

// isFile reports whether a part has a file name, be it an empty one.
func isFile(part *multipart.Part) bool {
	_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	_, ok := params["filename"]
	return err == nil && ok
}

func parseURLEncoded(body string) (fields, error) {
	var form fields
	for pair := range strings.SplitSeq(body, "&") {
		if pair == "" || len(form) == maxFields {
			continue
		}
		k, v, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(k)
		if err != nil {
			return nil, fmt.Errorf("upstreamtest: form field: %w", err)
		}
		value, err := url.QueryUnescape(v)
		if err != nil {
			return nil, fmt.Errorf("upstreamtest: form field %q: %w", name, err)
		}
		if name == "" {
			continue
		}
		form = append(form, Field{name, value})
	}
	return form, nil
}

// isID reports whether s is a positive number of 64 bits in its plain decimal
// form, as all the platform's ids are.
func isID(s string) bool {
	if s == "" || len(s) > 19 || s[0] == '0' {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return err == nil && n <= math.MaxInt64
}

// maxSubTIDs is how many parts of an order one call may ship.
const maxSubTIDs = 50

// parseSubTIDs reads a list of part orders: ids with ASCII commas, none twice.
func parseSubTIDs(s string) ([]string, bool) {
	list := strings.Split(s, ",")
	if len(list) > maxSubTIDs {
		return nil, false
	}
	seen := make(map[string]bool, len(list))
	for _, id := range list {
		if !isID(id) || seen[id] {
			return nil, false
		}
		seen[id] = true
	}
	return list, true
}

// feature is what a feature string says, as far as the platform acts on it.
type feature struct {
	store string // retailStoreId
}

// parseFeature reads a feature string and reports whether it keeps the grammar:
//
//	feature = entry {";" entry}
//	entry   = ("identCode" | "machineCode") "=" item {"|" item}
//	        | "retailStoreId" "=" value
//	        | "retailStoreType" "=" ("STORE" | "WAREHOUSE")
//	item    = oid ":" code {"," code}
//
// No key, no oid of a key and no code of a key comes twice, and the two keys of
// the store come together.
func parseFeature(s string) (feature, bool) {
	entries := map[string]string{}
	for entry := range strings.SplitSeq(s, ";") {
		key, value, ok := strings.Cut(entry, "=")
		if _, twice := entries[key]; !ok || twice {
			return feature{}, false
		}
		entries[key] = value
		switch key {
		case "identCode", "machineCode":
			ok = isCodeList(value)
		case "retailStoreId":
			ok = isCode(value)
		case "retailStoreType":
			ok = value == "STORE" || value == "WAREHOUSE"
		default:
			ok = false
		}
		if !ok {
			return feature{}, false
		}
	}
	store, hasStore := entries["retailStoreId"]
	_, hasType := entries["retailStoreType"]
	return feature{store: store}, hasStore == hasType
}

func isCodeList(s string) bool {
	oids, codes := map[string]bool{}, map[string]bool{}
	for item := range strings.SplitSeq(s, "|") {
		oid, list, ok := strings.Cut(item, ":")
		if !ok || !isID(oid) || oids[oid] {
			return false
		}
		oids[oid] = true
		for code := range strings.SplitSeq(list, ",") {
			if !isCode(code) || codes[code] {
				return false
			}
			codes[code] = true
		}
	}
	return true
}

// isCode reports whether s can be a serial number: it has no white space, no
// control character, no quotation mark and none of the grammar's separators.
func isCode(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune(`;|:,="'“”‘’`, r)
	})
}
