package app

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"packship/cmd/internal/life"
	"packship/consumer"
	"packship/upstream"
)

// The status page is one document: its style and script stand in it, so that it
// loads nothing, and the policy below names them by their hashes, so that
// nothing else runs in it. Everything that comes from outside passes through
// html/template, which escapes it for where it stands.
var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	pageTemplate = template.Must(template.New("").Funcs(template.FuncMap{
		"style":       func() template.CSS { return template.CSS(pageCSS) }, //nolint:gosec // our own file
		"script":      func() template.JS { return template.JS(pageJS) },    //nolint:gosec // our own file
		"tone":        func(state any) string { return tone(fmt.Sprint(state)) },
		"say":         func(word any) string { return say(fmt.Sprint(word)) },
		"sentence":    asSentence,
		"code":        withCode,
		"num":         grouped,
		"rate":        perSecond,
		"inc":         func(i int) int { return i + 1 },
		"seconds":     func(s float64) string { return unbroken(ago(time.Duration(s * float64(time.Second)))) },
		"days":        func(d *float64) string { return unbroken(ago(time.Duration(*d * 24 * float64(time.Hour)))) },
		"since":       func(t any) string { return unbroken(ago(time.Since(timeOf(t)))) },
		"detail":      func(s *life.Story, m life.Moment) string { return s.Detail(&m) },
		"zone":        func() string { return time.Now().Format("MST") },
		"drain":       drainText,
		"drained":     drainedText,
		"chart":       chartOf,
		"lowered":     func(a upstream.AccountStatus) bool { return a.Rate < 0.995*a.Limit },
		"untold":      untold,
		"accountEnds": func(a upstream.AccountStatus) string { return accountEnds(&a, time.Now()) },
		"shopEnds":    func(p upstream.ParkedShop) string { return shopEnds(&p, time.Now()) },
		"doing":       func(o OverdueOrder) string { return o.doing(time.Now()) },
		"resumable":   func(n Notice) bool { return n.Account != "" && n.Kind != HealthPaused },
		"resumePath":  func(account string) string { return "api/accounts/" + url.PathEscape(account) + "/resume" },
		"unparkPath":  func(shop string) string { return "api/shops/" + url.PathEscape(shop) + "/unpark" },
	}).Parse(pageHTML))

	contentSecurityPolicy = strings.Join([]string{
		"default-src 'none'",
		"style-src " + hashSource(pageCSS),
		"script-src " + hashSource(pageJS),
		"connect-src 'self'",
		"img-src data:", // the empty icon, so that browsers ask for none
		"base-uri 'none'",
		"form-action 'self'",
		"frame-ancestors 'none'",
	}, "; ")
)

func hashSource(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// servePage renders the status for a person. The script in the page keeps it
// fresh; without scripts it shows the moment at which it was loaded.
func (c *Connector) servePage(w http.ResponseWriter, _ *http.Request) {
	token, err := c.settings.adminToken()
	c.render(w, http.StatusOK, "page", &pageView{Status: c.Status(), Actions: err != nil || token != ""})
}

// render writes a page.
func (c *Connector) render(w http.ResponseWriter, code int, name string, view any) {
	var b bytes.Buffer
	if err := pageTemplate.ExecuteTemplate(&b, name, view); err != nil {
		c.log.Error("the page cannot be shown", "page", name, "err", err)
		http.Error(w, fmt.Sprintf("the page cannot be shown: %v", err), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write(b.Bytes()) // a client that has gone does not matter
}

// pageView is the status as the page shows it.
type pageView struct {
	Status

	Actions bool // there is an admin token
}

// maxParkedRows parked shops are shown one by one.
const maxParkedRows = 50

// Title is the state of the replica, in large letters.
func (v *pageView) Title() string {
	switch v.Health {
	case HealthHalted, HealthPaused, HealthThrottled:
		held := 0
		for i := range v.Accounts {
			if v.Accounts[i].Held() {
				held++
			}
		}
		if len(v.Accounts) > 1 {
			return fmt.Sprintf("%s, %d of %d accounts", title(string(v.Health)), held, len(v.Accounts))
		}
	case HealthParked:
		base := "Idle"
		if v.InFlight() > 0 || slices.ContainsFunc(v.Accounts, func(a upstream.AccountStatus) bool { return a.State == upstream.StateSending }) {
			base = "Sending"
		}
		if n := len(v.ParkedShops); n != 1 {
			return fmt.Sprintf("%s, %s shops parked", base, grouped(n))
		}
		return base + ", 1 shop parked"
	case HealthDamaged:
		return "Ledger damaged"
	case HealthStandby:
		return "Standing by"
	default:
	}
	return title(string(v.Health))
}

// Summary is the state of the replica in a sentence of numbers.
func (v *pageView) Summary() string {
	switch {
	case v.Leaving:
		return fmt.Sprintf("This replica begins no further call, %d in flight. %s.", v.InFlight(), v.waitingText())
	case !v.Ready:
		return "This replica starts no calls."
	}
	if v.Health == HealthStandby {
		return fmt.Sprintf("This replica sends nothing. %s.", v.waitingText())
	}
	var now, limit float64
	for i := range v.Accounts {
		now += v.Accounts[i].PerSecond
		limit += v.Accounts[i].Limit
	}
	return fmt.Sprintf("%s of %s calls a second, %d in flight. %s.", perSecond(now), perSecond(limit), v.InFlight(), v.waitingText())
}

func (v *pageView) waitingText() string {
	b := &v.Backlog
	text := "No order waits"
	switch {
	case b.Waiting == 1:
		text = "1 order waits"
	case b.Waiting > 1:
		text = grouped(b.Waiting) + " orders wait"
	}
	if drained := drainedText(b.DrainSeconds, b.Waiting); drained != "" && v.Role == consumer.RoleActive && !v.Leaving {
		text += ", " + drained
	}
	switch {
	case b.Held == 1:
		text += "; 1 is held"
	case b.Held > 1:
		text += "; " + grouped(b.Held) + " are held"
	}
	return text
}

// InFlight counts the calls of all accounts that were sent and are not answered.
func (v *pageView) InFlight() (n int) {
	for i := range v.Accounts {
		n += v.Accounts[i].InFlight
	}
	return n
}

// oldestRow is an order in the list of the oldest.
type oldestRow struct {
	*OldestOrder

	At time.Time
}

// Oldest lists the oldest order and, if that is on the shelf, the oldest that is
// not.
func (v *pageView) Oldest() []oldestRow {
	var rows []oldestRow
	for _, o := range []*OldestOrder{v.OldestOrder, v.OldestUnderWay} {
		if o != nil && (len(rows) == 0 || rows[0].OldestOrder != o) {
			rows = append(rows, oldestRow{o, v.Now.Add(-time.Duration(o.AgeSeconds * float64(time.Second)))})
		}
	}
	return rows
}

// MoreOverdue is how many overdue orders are not shown.
func (v *pageView) MoreOverdue() int { return v.OverdueCount - len(v.Overdue) }

// FirstParked are the parked shops that are shown.
func (v *pageView) FirstParked() []upstream.ParkedShop {
	return v.ParkedShops[:min(len(v.ParkedShops), maxParkedRows)]
}

// MoreParked is how many parked shops are not shown.
func (v *pageView) MoreParked() int { return max(0, len(v.ParkedShops)-maxParkedRows) }

// adviceRow is what to do about shops that are parked for a reason.
type adviceRow struct{ Reason, Do string }

// ParkedAdvice says for each reason for which shops are parked what to do about
// it, if they are too many for a notice each.
func (v *pageView) ParkedAdvice() []adviceRow {
	if len(v.ParkedShops) <= fewParked {
		return nil
	}
	var rows []adviceRow
	seen := map[adviceRow]bool{}
	for i := range v.ParkedShops {
		row := adviceRow{v.ParkedShops[i].Reason, shopDo(&v.ParkedShops[i])}
		if row.Do != "" && !seen[row] {
			seen[row] = true
			rows = append(rows, row)
		}
	}
	return rows
}

// reasonRow is one reason of failures.
type reasonRow struct {
	Reason  string
	Count   int64
	Percent int // of the most frequent one
}

// ByReason lists the reasons of failures, the most frequent first.
func (v *pageView) ByReason() []reasonRow { return byCount(v.Failures) }

func byCount(counts map[string]int64) []reasonRow {
	var rows []reasonRow
	for reason, n := range counts {
		rows = append(rows, reasonRow{Reason: reason, Count: n})
	}
	slices.SortFunc(rows, func(a, b reasonRow) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Reason, b.Reason))
	})
	for i := range rows {
		rows[i].Percent = int(max(1, 100*rows[i].Count/rows[0].Count))
	}
	return rows
}

// tone is the colour of a state: ok, calm, wait or bad.
func tone(state string) string {
	switch state {
	case string(HealthSending), "active", "shipped":
		return "ok"
	case string(HealthIdle), string(HealthStandby):
		return "calm"
	case string(HealthHalted), string(HealthStuck), string(HealthStopping), string(HealthDamaged), string(HealthBlocked), "failed":
		return "bad"
	default:
		return "wait"
	}
}

// chart is the calls of an account in the last ten minutes, as a curve in a
// field 600 wide and 100 high.
type chart struct {
	Area, Line string  // paths
	Limit      float64 // height of the line that the calls keep below
	Now, Max   float64 // calls a second
	Label      string
}

func chartOf(a upstream.AccountStatus) chart {
	const width, height, slot = 600.0, 100.0, 5.0
	c := chart{Max: a.Limit, Now: a.PerSecond}
	top, most := a.Limit, 0.0
	for _, n := range a.Recent {
		most = max(most, float64(n)/slot)
	}
	top = max(top, most) * 1.15
	if top == 0 || len(a.Recent) == 0 {
		return c
	}
	y := func(perSecond float64) float64 { return float64(int(10*height*(1-perSecond/top))) / 10 }
	c.Limit = y(a.Limit)
	step := width / float64(len(a.Recent))
	var line strings.Builder
	for i, n := range a.Recent {
		at := y(float64(n) / slot)
		if i == 0 {
			fmt.Fprintf(&line, "M0 %g", at)
		} else if n != a.Recent[i-1] {
			fmt.Fprintf(&line, "V%g", at)
		}
		fmt.Fprintf(&line, "H%g", step*float64(i+1))
	}
	c.Line = line.String()
	c.Area = c.Line + fmt.Sprintf("V%gH0Z", height)
	c.Label = fmt.Sprintf("Calls a second in the last ten minutes: now %s, at most %s, the limit is %s", perSecond(c.Now), perSecond(most), perSecond(a.Limit))
	return c
}

// untold says of how many calls the API did not tell the price.
func untold(calls, charged int64) string {
	switch n := calls - charged; n {
	case 0:
		return ""
	case 1:
		return "at least; 1 call did not tell its price"
	default:
		return "at least; " + grouped(n) + " calls did not tell their price"
	}
}

// drainText says after how long something will be drained.
func drainText(seconds *float64) string {
	if seconds == nil {
		return "not\u00a0now"
	}
	return unbroken(ago(time.Duration(*seconds * float64(time.Second))))
}

// drainedText says the same of what waits in all partitions.
func drainedText(seconds *float64, waiting int64) string {
	switch {
	case waiting == 0:
		return ""
	case seconds == nil:
		return "none goes on for now"
	case *seconds < 1:
		return unbroken("drained in less than 1 s")
	default:
		return unbroken("drained in about " + ago(time.Duration(*seconds*float64(time.Second))))
	}
}

// perSecond writes a rate with as many digits as matter.
func perSecond(f float64) string {
	if f >= 100 {
		return grouped(int64(f + 0.5))
	}
	return strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0")
}

// grouped writes a whole number with its digits in threes.
func grouped(n any) string {
	text := fmt.Sprint(n)
	sign := ""
	if strings.HasPrefix(text, "-") {
		sign, text = "-", text[1:]
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "\u202f" + text[i:]
	}
	return sign + text
}

// timeOf takes a time or a pointer to one.
func timeOf(t any) time.Time {
	if p, ok := t.(*time.Time); ok {
		return *p
	}
	at, _ := t.(time.Time)
	return at
}

// title begins a text with a capital letter.
func title(text string) string {
	if text == "" {
		return ""
	}
	first, size := utf8.DecodeRuneInString(text)
	return string(unicode.ToUpper(first)) + text[size:]
}

// asSentence begins a text with a capital letter and ends it with a full stop.
func asSentence(text string) string {
	return strings.TrimRight(title(text), ".") + "."
}

// measure is a number with a unit of time.
var measure = regexp.MustCompile(`(\d) (s|min|h|d)\b`)

// unbroken keeps numbers and their units on one line.
func unbroken(text string) string { return measure.ReplaceAllString(text, "$1\u00a0$2") }

// withCode shows what stands between backquotes as code, and numbers with their
// units on one line. Everything in it is escaped.
func withCode(text string) template.HTML {
	var b strings.Builder
	for i, part := range strings.Split(text, "`") {
		part = template.HTMLEscapeString(part)
		if i%2 == 1 {
			part = "<code>" + part + "</code>"
		} else {
			part = unbroken(part)
		}
		b.WriteString(part)
	}
	return template.HTML(b.String()) //nolint:gosec // escaped above
}
