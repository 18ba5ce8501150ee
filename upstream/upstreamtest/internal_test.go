package upstreamtest

import (
	"bytes"
	"math"
	"math/rand/v2"
	"mime/multipart"
	"slices"
	"strings"
	"testing"
	"time"
)

// naivePeak looks at the second that begins with each arrival.
func naivePeak(arrivals []time.Time) int {
	most := 0
	for _, begin := range arrivals {
		n := 0
		for _, t := range arrivals {
			if d := t.Sub(begin); d >= 0 && d < time.Second {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

func TestPeakAgainstNaive(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	start := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for range 150 {
		// Gaps of whole 100 ms meet the ends of seconds, others do not.
		unit := []time.Duration{100 * time.Millisecond, time.Millisecond, 250 * time.Millisecond}[rnd.IntN(3)]
		late := time.Duration(rnd.IntN(30)) * unit
		var p peak
		var seen []time.Time
		at := start
		for range 1 + rnd.IntN(120) {
			at = at.Add(time.Duration(rnd.IntN(5)) * unit)
			arrival := at
			if rnd.IntN(3) == 0 {
				arrival = at.Add(-time.Duration(rnd.Int64N(int64(late) + 1)))
			}
			p.add(arrival)
			seen = append(seen, arrival)
			if want := naivePeak(seen); p.most != want {
				t.Fatalf("after %d arrivals: got %d, want %d: %v", len(seen), p.most, want, seen)
			}
		}
		if !slices.IsSortedFunc(p.recent, time.Time.Compare) {
			t.Fatal("the arrivals are out of order")
		}
	}
}

func TestPeakIsHalfOpen(t *testing.T) {
	start := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	var p peak
	for i := range 100 {
		p.add(start.Add(time.Duration(i) * 100 * time.Millisecond))
	}
	if p.most != 10 {
		t.Errorf("calls 100 ms apart: got %d in a second, want 10", p.most)
	}
	p.add(start.Add(99*100*time.Millisecond + 99*time.Millisecond))
	if p.most != 11 {
		t.Errorf("one more before the second is over: got %d, want 11", p.most)
	}
}

// TestPeakForgets: a long run keeps a minute and a bit, not everything, and
// still counts right.
func TestPeakForgets(t *testing.T) {
	start := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	var p peak
	for i := range 200_000 {
		p.add(start.Add(time.Duration(i) * 10 * time.Millisecond))
	}
	if len(p.recent) > 2*6_000+2_000 {
		t.Errorf("%d arrivals are kept, want about a minute's 6000", len(p.recent))
	}
	if p.most != 100 {
		t.Errorf("got a peak of %d, want 100", p.most)
	}
	last := start.Add(199_999 * 10 * time.Millisecond)
	for range 5 {
		p.add(last.Add(-30 * time.Second))
	}
	if p.most != 105 {
		t.Errorf("with five late ones: got a peak of %d, want 105", p.most)
	}
}

// TestSlidingWindow checks the limiter against its definition: no second holds
// more than the limit, and no call is refused that would have fitted.
func TestSlidingWindow(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 60 {
		rate := Rate{PerSecond: 1 + rnd.IntN(12)}
		var l limiter
		var let []time.Time
		at := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
		for range 100 {
			at = at.Add(time.Duration(rnd.IntN(20)) * 10 * time.Millisecond)
			wait, ok := l.allow(rate, at)
			fits := naivePeak(append(slices.Clone(let), at)) <= rate.PerSecond
			if ok != fits {
				t.Fatalf("limit %d: a call at %v is let through: %t, it fits: %t", rate.PerSecond, at, ok, fits)
			}
			if ok {
				let = append(let, at)
				continue
			}
			if wait <= 0 || wait > time.Second {
				t.Fatalf("a refused call is told to wait %v", wait)
			}
			if naivePeak(append(slices.Clone(let), at.Add(wait))) > rate.PerSecond {
				t.Fatalf("after the wait of %v the call still does not fit", wait)
			}
		}
	}
}

func TestRateWindows(t *testing.T) {
	ms := time.Millisecond
	tests := map[string]struct {
		rate  Rate
		calls []time.Duration
		want  string
	}{
		"sliding": {
			Rate{PerSecond: 2}, []time.Duration{0, 500 * ms, 999 * ms, 1000 * ms, 1400 * ms, 1500 * ms}, "..x.x.",
		},
		"sliding, refused calls count": {
			Rate{PerSecond: 2, CountRefused: true}, []time.Duration{0, 500 * ms, 999 * ms, 1000 * ms, 1998 * ms, 2000 * ms}, "..xxx.",
		},
		"fixed": {
			// The clock's second begins with the first call.
			Rate{PerSecond: 2, Window: FixedWindow}, []time.Duration{0, 900 * ms, 950 * ms, 1000 * ms, 1050 * ms, 1999 * ms, 2000 * ms}, "..x..x.",
		},
		"leaky": {
			// Half a second makes room for one.
			Rate{PerSecond: 2, Window: LeakyBucket}, []time.Duration{0, 0, 0, 499 * ms, 500 * ms, 999 * ms, 1000 * ms, 3000 * ms, 3000 * ms, 3000 * ms}, "..xx.x...x",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			start := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
			var l limiter
			var got strings.Builder
			for _, d := range tt.calls {
				if _, ok := l.allow(tt.rate, start.Add(d)); ok {
					got.WriteByte('.')
				} else {
					got.WriteByte('x')
				}
			}
			if got.String() != tt.want {
				t.Errorf("got %s, want %s", got.String(), tt.want)
			}
		})
	}
}

// TestLatencyDistribution draws as many latencies as fix the quantiles well.
func TestLatencyDistribution(t *testing.T) {
	const n = 20_000
	draws := make([]time.Duration, n)
	for i := range draws {
		draws[i] = VendorLatency.draw(chance(7, 0, suspect{tid: string(rune(i)), attempt: i}))
	}
	slices.Sort(draws)
	near := func(what string, got, want time.Duration) {
		if r := float64(got) / float64(want); math.Abs(r-1) > 0.1 {
			t.Errorf("%s: got %v, want about %v", what, got, want)
		}
	}
	near("median", draws[n/2], 1100*time.Millisecond)
	near("p99", draws[n*99/100], 4*time.Second)

	rnd := rand.New(rand.NewPCG(1, 1))
	for l, want := range map[Latency]time.Duration{
		{}:                      0,
		{Fixed: time.Second}:    time.Second,
		{Median: 2 * time.Hour}: 2 * time.Hour,
		{Fixed: time.Second, Factor: 0.01, Median: time.Hour, P99: 2 * time.Hour}: 10 * time.Millisecond,
		{Fixed: 100 * time.Hour, Factor: 1e300}:                                   24 * time.Hour,
	} {
		if got := l.draw(rnd); got != want {
			t.Errorf("%+v: got %v, want %v", l, got, want)
		}
	}
}

func TestFeature(t *testing.T) {
	good := []string{
		"identCode=1001:12345,67890",
		"identCode=1001:A1,A2|1002:B1;machineCode=1003:M1,M2",
		"retailStoreId=12345;retailStoreType=STORE",
		"identCode=1001:A1;retailStoreId=9;retailStoreType=WAREHOUSE",
		"machineCode=9223372036854775807:码",
	}
	bad := []string{
		"", ";", "x", "=", "identCode", "identCode=",
		"identCode=tid:aaa,bbb",
		"identCode=1001:A1；machineCode=1003:M1",
		"identCode=1001:A1;",
		"identCode=1001:",
		"identCode=1001:A1|1001:A2",
		"identCode=1001:A1;identCode=1002:B1",
		"identCode=1001:A1,A1",
		"identCode=1001:A1|1002:A1",
		"identcode=1001:A1",
		"retailStoreId=12345",
		"retailStoreType=STORE",
		"retailStoreId=;retailStoreType=STORE",
		"retailStoreType=SHOP;retailStoreId=1",
		`identCode="1001:A1"`,
		"identCode=1001:A 1",
		"identCode=1001:A\u00a01",
		"identCode=0:A",
		"identCode=9223372036854775808:A",
		"instantMobilePhoneNumber=1",
	}
	for _, s := range good {
		if _, ok := parseFeature(s); !ok {
			t.Errorf("%q is refused", s)
		}
	}
	for _, s := range bad {
		if _, ok := parseFeature(s); ok {
			t.Errorf("%q is accepted", s)
		}
	}
}

func TestIsID(t *testing.T) {
	for s, want := range map[string]bool{
		"1": true, "9223372036854775807": true, "2345678901234567891": true,
		"": false, "0": false, "01": false, "9223372036854775808": false, "10000000000000000000": false,
		"-1": false, "+1": false, "1.5": false, "1e3": false, " 1": false, "９９": false, "1 ": false,
	} {
		if got := isID(s); got != want {
			t.Errorf("isID(%q) = %t, want %t", s, got, want)
		}
	}
}

// body writes parts with the given dispositions.
func body(parts ...string) (contentType string, b []byte) {
	var buf bytes.Buffer
	for i := 0; i < len(parts); i += 2 {
		buf.WriteString("--b\r\nContent-Disposition: " + parts[i] + "\r\n\r\n" + parts[i+1] + "\r\n")
	}
	buf.WriteString("--b--\r\n")
	return `multipart/form-data; boundary="b"`, buf.Bytes()
}

func TestForm(t *testing.T) {
	contentType, b := body(
		`form-data; name="tid"`, "1",
		`form-data; name="unknown"`, "x\r\ny",
		`form-data; name="photo"; filename="a.png"`, "png",
		`form-data; name="empty file"; filename=""`, "",
		`attachment; name="no field"`, "z",
		`form-data; name="tid"`, "2",
		`form-data; name="blank"`, "",
	)
	form, err := parseForm(contentType, b, false)
	if err != nil {
		t.Fatal(err)
	}
	want := fields{{"tid", "1"}, {"unknown", "x\r\ny"}, {"tid", "2"}, {"blank", ""}}
	if !slices.Equal(form, want) {
		t.Errorf("got %q, want %q", form, want)
	}
	if got := form.value("tid"); got != "2" {
		t.Errorf("of a repeated field the value is %q, want the last, 2", got)
	}
	if got := form.value("none"); got != "" {
		t.Errorf("an absent field is %q", got)
	}

	form, err = parseForm("application/x-www-form-urlencoded; charset=utf-8", []byte("tid=1&a+b=%E4%B8%AD&&tid=2"), true)
	if want := (fields{{"tid", "1"}, {"a b", "中"}, {"tid", "2"}}); err != nil || !slices.Equal(form, want) {
		t.Errorf("got %q, %v, want %q", form, err, want)
	}
}

func TestBrokenForms(t *testing.T) {
	contentType, whole := body(`form-data; name="tid"`, "1")
	for name, tt := range map[string]struct {
		contentType string
		body        string
	}{
		"no content type":     {"", string(whole)},
		"another one":         {"application/json", "{}"},
		"URL encoding":        {"application/x-www-form-urlencoded", "tid=1"},
		"no boundary":         {"multipart/form-data", string(whole)},
		"another boundary":    {"multipart/form-data; boundary=c", string(whole)},
		"cut off":             {contentType, string(whole[:len(whole)-8])},
		"empty":               {contentType, ""},
		"multipart/mixed":     {`multipart/mixed; boundary="b"`, string(whole)},
		"content type broken": {`multipart/form-data; boundary="`, string(whole)},
	} {
		if form, err := parseForm(tt.contentType, []byte(tt.body), false); err == nil && len(form) > 0 {
			t.Errorf("%s: got %v", name, form)
		}
	}
	for _, s := range []string{"a=%zz", "%zz=a"} {
		if _, err := parseForm("application/x-www-form-urlencoded", []byte(s), true); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

func TestFormIsBounded(t *testing.T) {
	var parts []string
	for range maxFields + 10 {
		parts = append(parts, `form-data; name="tid"`, "1")
	}
	contentType, b := body(parts...)
	if form, err := parseForm(contentType, b, false); err != nil || len(form) != maxFields {
		t.Errorf("got %d fields, %v, want %d", len(form), err, maxFields)
	}
}

func TestPHPStrings(t *testing.T) {
	for s, want := range map[string]string{
		"成功": `"\u6210\u529f"`, "a/b": `"a\/b"`, `"\`: `"\"\\"`, "\n\x01": `"\n\u0001"`, "😀": `"\ud83d\ude00"`, "": `""`,
	} {
		if got := string(appendPHP(nil, s, false)); got != want {
			t.Errorf("%q: got %s, want %s", s, got, want)
		}
	}
	if got := string(appendPHP(nil, "成/功", true)); got != `"成\/功"` {
		t.Errorf("raw: got %s", got)
	}
}

func FuzzForm(f *testing.F) {
	contentType, whole := body(`form-data; name="tid"`, "1", `form-data; name="f"; filename="x"`, "2")
	f.Add(contentType, whole)
	f.Add("application/x-www-form-urlencoded", []byte("tid=1&x=%41"))
	f.Add("multipart/form-data; boundary=b", []byte("--b\r\n\r\n--b--"))
	f.Fuzz(func(t *testing.T, contentType string, b []byte) {
		form, err := parseForm(contentType, b, true)
		if err != nil {
			return
		}
		if len(form) > maxFields {
			t.Errorf("%d fields", len(form))
		}
		// What was read can be written and read again.
		var buf bytes.Buffer
		w := multipart.NewWriter(&buf)
		for _, field := range form {
			if strings.ContainsFunc(field.Name, func(r rune) bool { return r < ' ' || r >= 0x7f || r == '"' || r == '\\' }) {
				return // names that a writer would escape
			}
			part, err := w.CreatePart(map[string][]string{"Content-Disposition": {`form-data; name="` + field.Name + `"`}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := part.Write([]byte(field.Value)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		again, err := parseForm(w.FormDataContentType(), buf.Bytes(), false)
		if err != nil && len(form) > 0 {
			t.Fatalf("%v, of %q", err, form)
		}
		for i := range again {
			if again[i].Value != form[i].Value {
				t.Errorf("field %d: got %q, want %q", i, again[i], form[i])
			}
		}
	})
}

func FuzzFeature(f *testing.F) {
	f.Add("identCode=1001:A1,A2|1002:B1;machineCode=1003:M1,M2")
	f.Add("retailStoreId=12345;retailStoreType=STORE")
	f.Fuzz(func(t *testing.T, s string) {
		if _, ok := parseFeature(s); ok && strings.ContainsAny(s, " \t\n\"'") {
			t.Errorf("%q is accepted", s)
		}
	})
}

func FuzzSubTIDs(f *testing.F) {
	f.Add("11,12")
	f.Add("11,,12")
	f.Fuzz(func(t *testing.T, s string) {
		list, ok := parseSubTIDs(s)
		if ok && (strings.Join(list, ",") != s || len(list) > maxSubTIDs || strings.Trim(s, "0123456789,") != "") {
			t.Errorf("%q is accepted as %q", s, list)
		}
	})
}

func BenchmarkPeak(b *testing.B) {
	var p peak
	at := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for b.Loop() {
		at = at.Add(200 * time.Microsecond)
		p.add(at)
	}
}

// TestJournalGoneBeforeRead lets a caller go away between the first byte of its
// request and the last: its call is not under way for ever.
func TestJournalGoneBeforeRead(t *testing.T) {
	j := newJournal(0)
	form := fields{{Name: "shop_id", Value: "1"}, {Name: "tid", Value: "2"}}
	call := func() *Entry {
		e := &Entry{Arrived: time.Now(), Endpoint: string(endpointSend)}
		j.begin(e)
		return e
	}
	gone := call()
	j.done(gone, false)
	j.describe(gone, form)
	again := call()
	j.describe(again, form)
	if again.Overlap || j.Stats().Overlaps != 0 {
		t.Error("a call counts as one during another whose caller is gone")
	}
	during := call()
	j.describe(during, form)
	if !during.Overlap {
		t.Error("a call during another does not count as one")
	}
}
