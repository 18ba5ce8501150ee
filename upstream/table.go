package upstream

import (
	"embed"
	"encoding/csv"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"packship/schema"
)

// codes.csv is the answer table of the API with what is to be done after each
// row. rows.csv adds what one row says about the attempt, the platform's own
// codes behind it, and how often it may be tried again at most.
//
//go:embed codes.csv rows.csv
var tableFiles embed.FS

// action is what a row asks for, as the table writes it.
type action string

const (
	actSucceed   action = "succeed"
	actFail      action = "fail"
	actRetry     action = "retry"
	actRetryOnce action = "retry_once"
	actHalt      action = "halt_account"
	actPark      action = "park_shop"
	actReconcile action = "reconcile"
)

// row is one row of the answer table.
type row struct {
	number     int
	code       int64
	message    string
	key        string // the message, normalised
	slug       string
	class      string
	action     action
	effect     schema.Effect
	fault      bool // counts as an upstream fault
	redrivable bool
	advice     string
	subCodes   []string
	maxRetries int // of a retried row
}

// codePlatform is the code under which the platform behind the API answers. Its
// text alone says what is wrong.
const codePlatform = 614

// table finds the row of an answer.
type table struct {
	rows     []*row
	byText   map[textKey]*row
	byCode   map[int64]*row // the vendor's codes with one row
	bySub    map[string]*row
	contains []*row // the rows that a longer text may be recognised by
}

type textKey struct {
	code int64
	text string
}

// answers is the answer table. Its data is part of the program, so that a
// defect in it is a defect of the program.
var answers = mustLoadTable()

func mustLoadTable() *table {
	t, err := loadTable()
	if err != nil {
		panic(err)
	}
	return t
}

func loadTable() (*table, error) {
	codes, err := records("codes.csv", 10)
	if err != nil {
		return nil, err
	}
	more, err := records("rows.csv", 4)
	if err != nil {
		return nil, err
	}
	if len(codes) != len(more) {
		return nil, fmt.Errorf("upstream: codes.csv has %d rows and rows.csv %d", len(codes), len(more))
	}
	t := &table{byText: map[textKey]*row{}, byCode: map[int64]*row{}, bySub: map[string]*row{}}
	for i := range codes {
		r, err := parseRow(codes[i], more[i])
		if err != nil {
			return nil, err
		}
		t.add(r)
	}
	// Codes of the platform that the API's page does not list, but that are
	// known to exist.
	for sub, number := range map[string]int{
		"ORDER_NOT_FOUND_ERROR":           13,
		"CONSIGN_FUZZY_QUERY_ORDER_ERROR": 13,
		"CD01":                            51,
	} {
		t.bySub[sub] = t.rows[number-1]
	}
	return t, nil
}

func records(name string, fields int) ([][]string, error) {
	file, err := tableFiles.Open(name)
	if err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	defer func() { _ = file.Close() }() // embedded
	r := csv.NewReader(file)
	r.FieldsPerRecord = fields
	all, err := r.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("upstream: %s: %w", name, err)
	}
	return all[1:], nil
}

func parseRow(code, more []string) (*row, error) {
	if code[0] != more[0] {
		return nil, fmt.Errorf("upstream: row %s of codes.csv stands beside row %s of rows.csv", code[0], more[0])
	}
	r := &row{
		message: code[2], key: normalize(code[2]), slug: code[3], class: code[4], action: action(code[5]),
		fault: code[6] == "yes", redrivable: code[8] == "yes", advice: code[9],
		subCodes: strings.Fields(more[2]),
	}
	var err error
	if r.number, err = strconv.Atoi(code[0]); err != nil {
		return nil, fmt.Errorf("upstream: codes.csv: %w", err)
	}
	if r.code, err = strconv.ParseInt(code[1], 10, 64); err != nil {
		return nil, fmt.Errorf("upstream: codes.csv row %d: %w", r.number, err)
	}
	switch r.action {
	case actSucceed, actFail, actHalt, actPark, actReconcile:
	case actRetry, actRetryOnce:
		if r.maxRetries, err = strconv.Atoi(more[3]); err != nil {
			return nil, fmt.Errorf("upstream: rows.csv row %d: a retried row needs a bound: %w", r.number, err)
		}
	default:
		return nil, fmt.Errorf("upstream: codes.csv row %d: unknown action %q", r.number, r.action)
	}
	switch more[1] {
	case "shipped":
		r.effect = schema.EffectShipped
	case "not_shipped":
		r.effect = schema.EffectNone
	case "unknown":
		r.effect = schema.EffectUnknown
	default:
		return nil, fmt.Errorf("upstream: rows.csv row %d: unknown outcome %q", r.number, more[1])
	}
	return r, nil
}

func (t *table) add(r *row) {
	t.rows = append(t.rows, r)
	// Two rows share a text. The first stands for both: they differ in nothing
	// that can be acted on.
	if k := (textKey{r.code, r.key}); t.byText[k] == nil {
		t.byText[k] = r
		if r.code == codePlatform {
			t.contains = append(t.contains, r)
		}
	}
	// Code 204 has two rows, the platform's code many: only their texts tell
	// them apart.
	if r.code != codePlatform && r.code != codeRefused {
		t.byCode[r.code] = r
	}
	for _, sub := range r.subCodes {
		t.bySub[sub] = r
	}
}

// row returns the row with the given number.
func (t *table) row(number int) *row { return t.rows[number-1] }

// The rows that answers outside the table are like.
const (
	rowQuota      = 9
	rowToken      = 11
	rowPath       = 12
	rowPermission = 8
	rowAddress    = 21
)

// quotaReason is why an account without calls or points left is halted.
var quotaReason = answers.row(rowQuota).slug

// codeRefused is the code of an account without permission or calls left.
const codeRefused = 204

// match is what the table knows of an answer with a code other than 0.
type match struct {
	row *row // nil if the answer is in no row
	// throttled is true if the text speaks of too many calls.
	throttled bool
	// hint is true if there is no row, but the text has a sign that the
	// platform failed instead of refusing, so that the outcome is open.
	hint bool
}

// ofOrder reports whether an answer with that code refuses one order. Other rows
// speak of the account or the shop, or leave the outcome open themselves.
func (m match) ofOrder(code int64) bool {
	if m.row == nil {
		return code == codePlatform
	}
	return m.row.action == actFail || m.row.action == actReconcile
}

var (
	// subCodePattern finds the platform's codes by their last part, and
	// longSubCode those that are known by their whole name.
	subCodePattern  = regexp.MustCompile(`isv\.[\w.-]+:([A-Z]{1,2}[0-9]{0,4}|ORDER_NOT_FOUND_ERROR|CONSIGN_FUZZY_QUERY_ORDER_ERROR)\b|#((?:CD|AT)[0-9]{2,4})\b`)
	longSubCode     = regexp.MustCompile(`isv\.[\w-]+(?::[\w-]+)*`)
	throttlePattern = regexp.MustCompile(`频繁|频率|限流|toomany|banwilllast|limited-by-|call-limited`)
	quotaPattern    = regexp.MustCompile(`次数不足|余额不足|点券不足`)
)

// containMin is how long a row's text must be, in characters, for a longer text
// to be recognised by it. Shorter ones are parts of many a sentence.
const containMin = 6

// match finds the row of a code other than 0 and its text: by the whole text,
// else by a code of the platform in it, else by the one row whose whole text it
// contains. Fragments are never matched: two rows may have them in common.
func (t *table) match(code int64, text string) match {
	key := normalize(text)
	if r := t.byText[textKey{code, key}]; r != nil {
		return match{row: r}
	}
	if code == codePlatform {
		if r := t.bySubCode(text); r != nil {
			return match{row: r}
		}
	}
	if throttlePattern.MatchString(key) {
		return match{throttled: true}
	}
	switch {
	case code == 429:
		return match{throttled: true}
	case code == codeRefused && strings.Contains(key, "无该接口权限"):
		return match{row: t.row(rowPermission)}
	case quotaPattern.MatchString(key):
		return match{row: t.row(rowQuota)}
	case code == codePlatform:
		return t.byContainment(key, strings.Contains(text, "isp."))
	}
	return match{row: t.byCode[code]}
}

// bySubCode returns the row of the platform's code in the text, nil if there is
// none or they differ.
func (t *table) bySubCode(text string) *row {
	text = norm.NFKC.String(text)
	names := longSubCode.FindAllString(text, -1)
	for _, m := range subCodePattern.FindAllStringSubmatch(text, -1) {
		names = append(names, m[1]+m[2])
	}
	var found *row
	for _, name := range names {
		r := t.bySub[name]
		if r == nil {
			continue
		}
		if found != nil && found.slug != r.slug {
			return nil
		}
		found = r
	}
	return found
}

// byContainment returns the one row whose whole text the key contains. Such a
// likeness is good enough to refuse an order or to hold it, but not to call
// again for it. The hint says that the text has a sign of a failed platform.
func (t *table) byContainment(key string, hint bool) match {
	var found *row
	for _, r := range t.contains {
		if !strings.Contains(key, r.key) {
			continue
		}
		if r.effect == schema.EffectUnknown {
			hint = true
			continue
		}
		if utf8.RuneCountInString(r.key) < containMin {
			continue
		}
		if found != nil {
			return match{hint: hint}
		}
		found = r
	}
	if hint {
		return match{hint: true}
	}
	return match{row: found}
}

// normalize returns a text without what differs between the API's page and its
// answers: the width of characters, letter case, white space, punctuation.
func normalize(s string) string {
	var b strings.Builder
	for _, r := range norm.NFKC.String(s) {
		switch r {
		case '\u200b', '\ufeff', ',', '、', '.', '。', '!', '?', ';', ':', '"', '\'', '“', '”', '(', ')', '[', ']':
			continue
		}
		if unicode.IsSpace(r) {
			continue
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
