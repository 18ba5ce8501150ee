package upstreamtest_test

import (
	"bytes"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"packship/upstream/upstreamtest"
)

const token = "73a1e6f0"

// form is a form in the order of the wire.
type form [][2]string

// order is the form of a good call for an order.
func order(shop, tid string, more ...string) form {
	f := form{{"shop_id", shop}, {"tid", tid}, {"out_sid", "SF1234567890123"}, {"company_code", "SF"}}
	return f.with(more...)
}

// with sets fields, given as name and value in turn. The value - takes a field
// out.
func (f form) with(pairs ...string) form {
	out := append(form(nil), f...)
next:
	for i := 0; i < len(pairs); i += 2 {
		for k := range out {
			if out[k][0] == pairs[i] {
				if pairs[i+1] == "-" {
					out = append(out[:k], out[k+1:]...)
				} else {
					out[k][1] = pairs[i+1]
				}
				continue next
			}
		}
		out = append(out, [2]string{pairs[i], pairs[i+1]})
	}
	return out
}

// encode writes the form as multipart.
func (f form) encode() (contentType string, body []byte) {
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	for _, kv := range f {
		if err := w.WriteField(kv[0], kv[1]); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return w.FormDataContentType(), buf.Bytes()
}

func (f form) request(path string) *http.Request {
	contentType, body := f.encode()
	r := httptest.NewRequest(http.MethodPost, "http://api.test"+path, bytes.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

// reply is an answer of the API.
type reply struct {
	Status int
	Header http.Header
	Body   string

	Code *int   `json:"code"`
	Msg  string `json:"msg"`
	URL  string `json:"url"`
	Msec int64  `json:"msec"`
	Time int64  `json:"time"`
	Data json.RawMessage
}

func parse(t *testing.T, res *http.Response) reply {
	t.Helper()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	rep := reply{Status: res.StatusCode, Header: res.Header, Body: string(body)}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
		// Broken answers are looked at as text.
		_ = json.Unmarshal(body, &rep)
	}
	return rep
}

// send makes one call to the handler.
func send(t *testing.T, sim *upstreamtest.Simulator, f form) reply {
	t.Helper()
	return post(t, sim, f.request(upstreamtest.SendPath))
}

func post(t *testing.T, sim *upstreamtest.Simulator, r *http.Request) reply {
	t.Helper()
	rec := httptest.NewRecorder()
	sim.ServeHTTP(rec, r)
	return parse(t, rec.Result())
}

// open returns a simulator that is closed at the end of the test.
func open(t *testing.T, opts upstreamtest.Options) *upstreamtest.Simulator {
	t.Helper()
	sim := upstreamtest.New(opts)
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return sim
}

// wantRow checks that the answer is a row of the table.
func wantRow(t *testing.T, got reply, n int) {
	t.Helper()
	row, _ := upstreamtest.RowN(n)
	if got.Status != http.StatusOK || got.Code == nil || *got.Code != row.Code || got.Msg != row.Message {
		t.Fatalf("got %d %s, want row %d: %d %s", got.Status, got.Body, n, row.Code, row.Message)
	}
}
