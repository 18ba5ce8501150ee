package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"time"

	"packship/schema"
)

// maxBody bounds what is read of an answer.
const maxBody = 1 << 20

// form returns the body of a call and its content type. Fields that are not set
// are left out: the API takes an empty one as a wrong one. The request carries
// the whole body at once, so that its length is known.
func form(p *schema.Packed, vvtype int) (body []byte, contentType string) {
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	write := func(name, value string) {
		if value != "" {
			_ = w.WriteField(name, value) // memory takes everything
		}
	}
	write("tid", p.TID)
	write("out_sid", p.OutSID)
	write("company_code", p.CompanyCode)
	write("shop_id", p.ShopID)
	if p.IsSplit == 1 {
		write("is_split", "1")
		write("sub_tid", strings.Join(p.SubTID, ","))
	}
	write("sender_id", p.SenderID)
	write("cancel_id", p.CancelID)
	write("feature", p.Feature)
	if p.VVType != 0 {
		vvtype = p.VVType
	}
	if vvtype != 0 {
		write("vvtype", strconv.Itoa(vvtype))
	}
	_ = w.Close()
	return buf.Bytes(), w.FormDataContentType()
}

// exchange is one HTTP exchange: what came back, and whether the request left at
// all.
type exchange struct {
	reply
	left bool
	err  error
	took time.Duration // from leaving on
	// connected is true if there was a connection, reused if it had served a
	// call before.
	connected, reused bool
}

var errCallTimeout = errors.New("upstream: the call took too long")

// do makes one HTTP exchange. The launch decides when and whether the request
// leaves, for as long as ready lasts; from then on nothing but the time limit
// ends it.
func (u *Upstream) do(ready context.Context, l *launch, token, contentType string, body []byte) exchange {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ready))
	defer cancel(nil)
	defer context.AfterFunc(ready, func() {
		if l.refuse(context.Cause(ready)) {
			cancel(context.Cause(ready))
		}
	})()
	x := exchange{reply: reply{token: token}}
	var conn *pacedConn
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			x.connected, x.reused = true, info.Reused
			conn = paced(info.Conn)
			conn.arm(l)
		},
		// What is there before the request has left cannot be its answer.
		GotFirstResponseByte: func() { l.refuse(errEarlyAnswer) },
	})
	permit := l.permit
	var limit *time.Timer
	l.permit = func() bool {
		if !permit() {
			return false
		}
		limit = time.AfterFunc(u.cfg.Timeout, func() {
			conn.takeBack()
			cancel(errCallTimeout)
		})
		return true
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.cfg.URL, bytes.NewReader(body))
	if err != nil {
		l.refuse(err)
		return exchange{err: err}
	}
	// Without it the transport cannot send the body again by itself.
	req.GetBody = nil
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("User-Agent", "packship")

	res, err := u.transport.RoundTrip(req)
	// If the request has not left by now it never will, even if there is an
	// answer: that is to something else.
	x.left = !l.refuse(errConnLost)
	if res != nil {
		if x.left {
			x.status, x.header = res.StatusCode, res.Header
			x.body, x.whole = readBody(res.Body)
		}
		_ = res.Body.Close() // it is read, or not wanted
	}
	if limit != nil {
		limit.Stop()
	}
	if x.left {
		_, left := l.times()
		x.took = time.Since(left)
	}
	x.err = err
	return x
}

// withoutToken takes the token out of the text of an answer that says what it was
// asked with: it goes into events, logs and the ledger. The text must have been
// decoded, since JSON may write a token in many ways.
func withoutToken(text, token string) string {
	const shortest = 8 // what is shorter may be anything, and is no token of the API's
	if len(token) < shortest {
		return text
	}
	return strings.ReplaceAll(text, token, "[redacted]")
}

func readBody(r io.Reader) (body []byte, whole bool) {
	body, err := io.ReadAll(io.LimitReader(r, maxBody+1))
	return body, err == nil && len(body) <= maxBody
}
