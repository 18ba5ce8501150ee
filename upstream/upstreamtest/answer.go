package upstreamtest

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// answer is what the API has to say about a call, before a fault spoils it.
type answer struct {
	row    int // 0 if it is none of the table
	code   int
	msg    string
	url    string
	data   []byte // JSON; nil is what there is where nothing is
	status int    // HTTP status, if it is not 200: the answer is a Yii error body
	raw    []byte // the body, if it has not the vendor's usual form
}

// answerRow says what the row of the answer table says.
func (c *call) answerRow(n int) answer {
	if n == rateExceeded {
		switch or(c.rate.Answer, RateHTTP429) {
		case RateRow:
			n = rowRetryLater
		case RateCode429:
			return answer{code: http.StatusTooManyRequests, msg: "请求过于频繁,请稍后再试"}
		default:
			return answer{status: http.StatusTooManyRequests}
		}
	}
	row := table()[n-1]
	a := answer{row: n, code: row.Code, msg: row.text(c.sw.Messages)}
	switch {
	case n == rowOK:
		a.data = c.outcome(true)
	case n == rowShopUnauthorised:
		a.url = "http://" + c.r.Host + "/auth?shop_id=" + c.form.value("shop_id")
	case c.charged && c.sw.ShowCharge:
		a.data = c.outcome(false)
	}
	return a
}

// answerFault is what a fault of the platform says.
func (c *call) answerFault(f *armed) answer {
	if f.Kind == Code {
		return answer{code: f.Code, msg: f.Text}
	}
	a := c.answerRow(f.n)
	a.msg = or(f.Text, a.msg)
	return a
}

// outcome is the data of an answer that says what the call did and cost.
func (c *call) outcome(success bool) []byte {
	return fmt.Appendf(nil, `[{"withholding_money":%d,"success":%t}]`, c.cost(), success)
}

func (c *call) cost() int64 {
	if !c.charged {
		return 0
	}
	return c.price
}

// encode writes the answer as the vendor's PHP would.
func (c *call) encode(a answer) []byte {
	if a.raw != nil {
		return slices.Clone(a.raw)
	}
	raw := c.sw.RawChinese
	b := make([]byte, 0, 256)
	b = append(b, `{"code":`...)
	b = strconv.AppendInt(b, int64(a.code), 10)
	b = append(b, `,"msg":`...)
	b = appendPHP(b, a.msg, raw)
	if a.url != "" {
		b = append(b, `,"url":`...)
		b = appendPHP(b, a.url, raw)
	}
	b = append(b, `,"msec":`...)
	b = strconv.AppendInt(b, c.elapsed().Milliseconds(), 10)
	b = append(b, `,"time":`...)
	b = strconv.AppendInt(b, c.s.Now().Unix(), 10)
	if data := c.dataField(a); data != "" {
		b = append(b, `,"data":`...)
		b = append(b, data...)
	}
	return append(b, '}')
}

// elapsed is how long the call has taken, in the API's own time.
func (c *call) elapsed() time.Duration {
	d := time.Since(c.arrived)
	if c.latency.Factor > 0 {
		d = time.Duration(float64(d) / c.latency.Factor)
	}
	return d
}

func (c *call) dataField(a answer) string {
	if a.data != nil {
		return string(a.data)
	}
	switch or(c.sw.ErrorData, DataArray) {
	case DataObject:
		return "{}"
	case DataNull:
		return "null"
	case DataString:
		return `""`
	case DataAbsent:
		return ""
	default:
		return "[]"
	}
}

// appendPHP appends a JSON string like PHP's json_encode does: what is not
// ASCII escaped in UTF-16, unless raw, and a slash with a backslash before it.
func appendPHP(b []byte, s string, raw bool) []byte {
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\' || r == '/':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, `\n`...)
		case r < ' ':
			b = fmt.Appendf(b, `\u%04x`, r)
		case r < utf8.RuneSelf || raw:
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			r -= 0x10000
			b = fmt.Appendf(b, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return append(b, '"')
}

// deliver writes the answer in the manner of the fault, if there is one.
func (c *call) deliver(f *armed, a answer) {
	c.s.journal.note(c.entry, func(e *Entry) { e.Row = a.row })
	if f == nil {
		c.write(a)
		return
	}
	// What strikes at the gate may take its time over it.
	if f.gate && !c.s.sleep(f.Delay) {
		abort(c.w)
		return
	}
	for name, value := range f.Headers {
		c.w.Header().Set(name, value)
	}
	status := or(f.Status, http.StatusOK)
	switch f.manner {
	case mannerHang:
		c.untilGone()
		abort(c.w)
	case mannerReset:
		abort(c.w)
	case mannerHTTP:
		c.writePage(f.n)
	case mannerHTML:
		c.writePage(http.StatusOK)
	case mannerYii:
		c.writeBody(f.n, jsonType, yiiBody(f.n), false)
	case mannerYii200:
		body := append([]byte(`{"success":false,"data":`), yiiBody(or(f.Status, http.StatusNotFound))...)
		c.writeBody(http.StatusOK, jsonType, append(body, '}'), false)
	case mannerEmpty:
		c.writeBody(http.StatusOK, jsonType, nil, false)
	case mannerRaw:
		c.writeBody(status, jsonType, []byte(f.Body), false)
	case mannerRedirect:
		c.w.Header().Set("Location", or(f.Location, "http://"+c.r.Host+movedPath+c.r.URL.Path))
		c.writePage(f.n)
	case mannerDrip:
		c.drip(c.encode(a), or(f.Delay, 100*time.Millisecond))
	case mannerCutOff:
		c.cutOff(c.encode(a))
	case mannerTruncated:
		body := c.encode(a)
		c.writeBody(status, jsonType, body[:len(body)*2/3], false)
	case mannerComma:
		body := c.encode(a)
		c.writeBody(status, jsonType, append(body[:len(body)-1], ",}"...), false)
	case mannerStrings:
		c.writeBody(status, jsonType, c.encodeStrings(a), true)
	case mannerHuge:
		body := c.encode(a)
		body = append(body[:len(body)-1], `,"padding":"`...)
		body = append(body, bytes.Repeat([]byte{'x'}, or(f.Size, 2<<20))...)
		c.writeBody(status, jsonType, append(body, `"}`...), false)
	default:
		c.write(c.spoilt(f.manner, a))
	}
}

// spoilt takes from a success what proves it.
func (c *call) spoilt(m manner, a answer) answer {
	if a.row != rowOK {
		return a
	}
	switch m {
	case mannerFalse:
		a.data = c.outcome(false)
	case mannerDataEmpty:
		a.data = []byte("[]")
	case mannerNoData:
		a.data = []byte{}
	default: // the others leave the answer itself as it is
	}
	return a
}

// encodeStrings writes the answer with strings for all scalars and the one
// element of data in place of its array.
func (c *call) encodeStrings(a answer) []byte {
	data := c.dataField(a)
	if a.row == rowOK {
		data = fmt.Sprintf(`{"success":"true","withholding_money":"%d"}`, c.cost())
	}
	body := fmt.Appendf(nil, `{"code":"%d","msg":`, a.code)
	body = appendPHP(body, a.msg, c.sw.RawChinese)
	body = fmt.Appendf(body, `,"msec":"%d","time":"%d"`, c.elapsed().Milliseconds(), c.s.Now().Unix())
	if data != "" {
		body = append(append(body, `,"data":`...), data...)
	}
	return append(body, '}')
}

const (
	jsonType = "application/json; charset=UTF-8"
	htmlType = "text/html; charset=UTF-8"
)

// write writes an answer of the API itself.
func (c *call) write(a answer) {
	if a.row == rowBadPath {
		switch or(c.sw.NotFound, NotFoundCode) {
		case NotFoundYii:
			a.status = http.StatusNotFound
		case NotFoundHTML:
			c.writePage(http.StatusNotFound)
			return
		default: // row 12 as it is
		}
	}
	if a.status != 0 && a.raw == nil {
		a.raw = yiiBody(a.status)
	}
	c.writeBody(or(a.status, http.StatusOK), jsonType, c.encode(a), true)
}

// writePage writes a page, such as a gateway has for errors.
func (c *call) writePage(status int) {
	text := strconv.Itoa(status) + " " + http.StatusText(status)
	page := fmt.Sprintf("<html>\r\n<head><title>%s</title></head>\r\n<body>\r\n<center><h1>%[1]s</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n", text)
	c.writeBody(status, htmlType, []byte(page), false)
}

// yiiBody is the error body of the Yii framework, whose code is 0.
func yiiBody(status int) []byte {
	message := http.StatusText(status)
	switch status {
	case http.StatusNotFound:
		message = "Page not found."
	case http.StatusTooManyRequests:
		message = "Rate limit exceeded."
	case http.StatusInternalServerError:
		message = "An internal server error occurred."
	}
	return fmt.Appendf(nil, `{"name":%q,"message":%q,"code":0,"status":%d}`, http.StatusText(status), message, status)
}

// writeBody writes a whole HTTP answer. The caller of the API can come back
// before this returns, so the journal is told first. A clean answer is one
// that the API means and says well.
func (c *call) writeBody(status int, contentType string, body []byte, clean bool) {
	h := c.w.Header()
	if h.Get("Content-Type") == "" {
		h.Set("Content-Type", contentType)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	c.finish(status, clean)
	c.w.WriteHeader(status)
	_, err := c.w.Write(body)
	if err == nil {
		err = http.NewResponseController(c.w).Flush()
	}
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		c.s.journal.lost(c.entry)
	}
}

// finish tells the journal that the answer goes out.
func (c *call) finish(status int, clean bool) {
	c.s.journal.note(c.entry, func(e *Entry) { e.Status = status })
	c.s.journal.done(c.entry, clean && c.r.Context().Err() == nil)
}

// drip writes an answer byte by byte.
func (c *call) drip(body []byte, pause time.Duration) {
	c.w.Header().Set("Content-Type", jsonType)
	c.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	flush := http.NewResponseController(c.w)
	for i := range body {
		if i == len(body)-1 {
			c.finish(http.StatusOK, true)
		}
		if _, err := c.w.Write(body[i : i+1]); err != nil || flush.Flush() != nil {
			c.s.journal.lost(c.entry)
			return
		}
		if !c.pause(pause) {
			abort(c.w)
			return
		}
	}
}

// pause waits, unless the caller leaves or the simulator is closed.
func (c *call) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.r.Context().Done():
	case <-c.s.closing:
	}
	return false
}

// cutOff promises a whole answer and breaks the connection in the middle.
func (c *call) cutOff(body []byte) {
	conn, _, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", jsonType, len(body))
	c.s.journal.note(c.entry, func(e *Entry) { e.Status = http.StatusOK })
	// The other end may be gone; it was to see a broken answer anyway.
	_, _ = conn.Write(append([]byte(head), body[:len(body)/2]...))
	_ = conn.Close()
}
