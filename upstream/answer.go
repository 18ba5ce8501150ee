package upstream

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"packship/schema"
)

// Reasons beyond the answer table. The first group stands in events.
const (
	reasonUnrecognised = "unrecognised_614"
	reasonRefused      = "accepted_not_shipped"
	reasonUnproven     = "success_unproven"
	reasonUnlisted     = "unlisted_code"
	reasonUnknown      = "outcome_unknown"

	reasonThrottled = "throttled"
	reasonRedirect  = "http_redirect"
	reasonCode204   = "code_204_unrecognised"

	reasonNotSent     = "not_sent"
	reasonUnreachable = "unreachable"
)

// Classes beyond the answer table.
const (
	classNeedsHuman = "needs_human"
	classThrottled  = "throttled"
	classConfig     = "config"
	classPermission = "permission"
	classTransient  = "transient"
)

// health is what an answer says of the health of the API.
type health int

const (
	// healthSilent says nothing: our own speed, our own account.
	healthSilent health = iota
	// healthAlive is a business answer: it says that the API works, but
	// is no success that would make up for faults.
	healthAlive
	// healthGood is a shipment.
	healthGood
	// healthBad is a fault.
	healthBad
	// healthShop is a fault of the platform that may be due to one shop. It
	// counts once a second shop sees it.
	healthShop
)

// finding is what an answer means: for the order, and for the account and the
// shop that it was sent for.
type finding struct {
	schema.Answer
	health health
	// halt and park are reasons to hold the account or the shop, "" if none.
	halt, park string
	// url is where the shop's owner authorises it.
	url string
	// pause is how long the account must not call, if it was throttled; source
	// says how that was told.
	pause  time.Duration
	source throttleSource
	// shopFault is true for a refusal that is likely to meet every order of
	// the shop.
	shopFault bool
	// unrecognised is true if the text is in no row.
	unrecognised bool
}

type throttleSource string

const (
	throttleHTTP throttleSource = "http_429"
	throttleText throttleSource = "text"
)

// policy is what the settings say of retries.
type policy struct {
	retryMax int
	backoff  time.Duration
}

// reply is what came back for one call.
type reply struct {
	status int // of HTTP, 0 if there was no answer at all
	header http.Header
	body   []byte
	whole  bool   // the body was read to its end
	token  string // what it was asked with, and must not be told
}

// maxMsg bounds the API's text in a result event, in characters.
const maxMsg = 500

// shopFaultRows are refusals that a wrong shop gets for each of its orders.
var shopFaultRows = map[int]bool{13: true, 21: true, 27: true, 47: true, 49: true, 54: true}

// stopParcelRows are refusals that also follow a refund.
var stopParcelRows = map[int]bool{15: true, 26: true, 59: true}

// read says what the reply to a call for p means. Only an HTTP 200 with a code
// that is there and 0 and success in every element of its data is a shipment;
// whatever else it may look like, it is none.
func (t *table) read(r reply, p *schema.Packed, pol policy) finding {
	if r.status == 0 {
		return unknown(pol)
	}
	b, readable := body{}, false
	if r.whole {
		b, readable = parseBody(r.body)
		b.msg, b.url = withoutToken(b.msg, r.token), withoutToken(b.url, r.token)
	}
	f := t.judge(r, b, readable, p, pol)
	if readable && (b.hasCode || b.errorStatus != 0) {
		f.Answered = true
		f.Exchange = &schema.Exchange{
			HTTPStatus: r.status, Code: b.code, Msg: cut(b.msg, maxMsg), Msec: b.msec, Time: b.time, Withheld: b.withheld,
		}
	}
	return f
}

// judge is read without the record of what was said.
func (t *table) judge(r reply, b body, readable bool, p *schema.Packed, pol policy) finding {
	var m match
	if b.hasCode && b.code != 0 && b.errorStatus == 0 {
		m = t.match(b.code, b.msg)
	}
	// These statuses speak for themselves: such a call was turned away at the
	// door.
	if f, ok := t.byStatus(r.status, r.header, b.msg, m); ok {
		return f
	}
	switch {
	case b.errorStatus != 0:
		if f, ok := t.byStatus(b.errorStatus, r.header, b.msg, match{}); ok {
			return f
		}
		return unknown(pol)
	case !readable || !b.hasCode:
		if r.status >= 400 && r.status < 500 && r.status != http.StatusRequestTimeout {
			return unlisted(policy{})
		}
		return unknown(pol)
	case b.code == 0 && r.status != http.StatusOK:
		return unknown(pol)
	case b.code == 0:
		return t.success(b.success)
	case m.throttled:
		return throttled(throttleText, pauseFor(r.header, b.msg))
	case r.status >= 500 && m.ofOrder(b.code):
		return unknown(pol) // it may have failed after it had shipped
	case m.row != nil:
		return fromRow(m.row, b, p, pol)
	case b.code == codePlatform:
		// Its text is all that says what is wrong. Without one it may be
		// anything, also a platform that failed after it had shipped.
		return unrecognised(m.hint || normalize(b.msg) == "")
	case b.code == codeRefused:
		return halted(reasonCode204, classPermission, "Code 204 with an unknown text: the account may lack a permission or calls; ask the vendor.")
	case r.status >= 500:
		f := unlisted(policy{retryMax: min(1, pol.retryMax), backoff: pol.backoff})
		f.health = healthBad // a server that breaks down may well put that into a code of its own
		return f
	default:
		return unlisted(policy{})
	}
}

// byStatus reads the HTTP statuses after which nothing else matters.
func (t *table) byStatus(status int, header http.Header, msg string, m match) (finding, bool) {
	like := t.row(rowToken)
	switch {
	case status == http.StatusTooManyRequests:
		return throttled(throttleHTTP, pauseFor(header, msg)), true
	case status >= 300 && status < 400:
		return halted(reasonRedirect, classConfig, "The API redirects, which is not followed: correct the URL."), true
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusProxyAuthRequired:
	case status == http.StatusPaymentRequired:
		like = t.row(rowQuota)
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed:
		like = t.row(rowPath)
	default:
		return finding{}, false
	}
	if m.row != nil && m.row.action == actHalt {
		like = m.row
	}
	return halted(like.slug, like.class, like.advice), true
}

// unknown is the finding of a call of which nobody knows what it did.
func unknown(pol policy) finding {
	return finding{health: healthBad, Answer: schema.Answer{
		Effect: schema.EffectUnknown, Action: schema.ActRetry, MaxRetries: pol.retryMax, Wait: pol.backoff, Reached: true,
		Reason: reasonUnknown, Class: classNeedsHuman, Redrivable: true,
		Advice: "The API gave no usable answer, so the order may or may not be shipped: look at it before anything is sent again.",
	}}
}

// unlisted is the finding of an answer that is in no table: it may have shipped,
// and calling again may cost a second shipment.
func unlisted(pol policy) finding {
	f := finding{unrecognised: true, Answer: schema.Answer{
		Effect: schema.EffectUnknown, Action: schema.ActFail, Reached: true,
		Reason: reasonUnlisted, Class: classNeedsHuman, Redrivable: true,
		Advice: "The API gave an answer that is not documented: look at the order and ask the vendor.",
	}}
	if pol.retryMax > 0 {
		f.Action, f.MaxRetries, f.Wait = schema.ActRetry, pol.retryMax, pol.backoff
	}
	return f
}

// unrecognised is the finding of a refusal of the platform in unknown words.
func unrecognised(hint bool) finding {
	f := finding{unrecognised: true, health: healthAlive, Answer: schema.Answer{
		Action: schema.ActFail, Reached: true,
		Reason: reasonUnrecognised, Class: classNeedsHuman, Redrivable: true,
		Advice: "The platform refused in words that are not documented: read them and decide.",
	}}
	if hint {
		f.Effect = schema.EffectUnknown
	}
	return f
}

// success reads an answer with HTTP 200 and code 0.
func (t *table) success(s tally) finding {
	ok := t.row(1)
	switch {
	case s.allTrue():
		return finding{health: healthGood, Answer: schema.Answer{
			Effect: schema.EffectShipped, Action: schema.ActSucceed, Reached: true, Reason: ok.slug, Class: ok.class, Advice: ok.advice,
		}}
	case s.no > 0 && s.silent == 0:
		f := finding{health: healthAlive, Answer: schema.Answer{
			Action: schema.ActFail, Reached: true, Reason: reasonRefused, Class: classNeedsHuman, Redrivable: true,
			Advice: "The API took the call and says that it did not ship: look at the order.",
		}}
		if s.yes > 0 {
			f.Effect = schema.EffectUnknown // it shipped a part of what was one shipment
		}
		return f
	default:
		return finding{health: healthBad, Answer: schema.Answer{
			Effect: schema.EffectUnknown, Action: schema.ActFail, Reached: true,
			Reason: reasonUnproven, Class: classNeedsHuman, Redrivable: true,
			Advice: "The API says that all is well but not that it shipped: look at the order before anything is sent again.",
		}}
	}
}

// fromRow is the finding of an answer that the table lists.
func fromRow(r *row, b body, p *schema.Packed, pol policy) finding {
	f := finding{health: healthAlive, Answer: schema.Answer{
		Effect: r.effect, Reached: true, Reason: r.slug, Class: r.class, Advice: r.advice, Redrivable: r.redrivable,
		StopParcel: stopParcelRows[r.number],
	}}
	f.shopFault = shopFaultRows[r.number]
	if r.fault {
		f.health = healthBad
		if r.code == codePlatform {
			f.health = healthShop
		}
	}
	switch r.action {
	case actFail:
		f.Action = schema.ActFail
		if r.number == rowAddress && p.SenderID == "" && p.CancelID == "" {
			// The shop has no default address: every order would meet the same.
			f.Action, f.park = schema.ActHold, r.slug
		}
	case actReconcile:
		f.Action = schema.ActReconcile
	case actRetry, actRetryOnce:
		f.Action, f.MaxRetries, f.Wait = schema.ActRetry, min(pol.retryMax, r.maxRetries), pol.backoff
	case actHalt:
		f.Action, f.Reached, f.halt = schema.ActHold, false, r.slug
	case actPark:
		f.Action, f.park, f.url = schema.ActHold, r.slug, b.url
		f.Reached = r.code == codePlatform
	case actSucceed:
		// Code 0 is read by success.
	}
	return f
}

func halted(reason, class, advice string) finding {
	return finding{halt: reason, health: healthAlive, Answer: schema.Answer{
		Action: schema.ActHold, Reason: reason, Class: class, Advice: advice, Redrivable: true,
	}}
}

func throttled(source throttleSource, pause time.Duration) finding {
	// The account waits for the whole pause, the order itself only a moment: it
	// may go on as soon as an operator resumes the account.
	const moment = time.Second
	return finding{source: source, pause: pause, health: healthSilent, Answer: schema.Answer{
		Action: schema.ActHold, Wait: min(pause, moment), Reason: reasonThrottled, Class: classThrottled, Redrivable: true,
		Advice: "The API limits the rate: calls go on more slowly after a pause.",
	}}
}

const (
	// throttlePause is the pause of an account that was throttled without a
	// word on how long.
	throttlePause = time.Second
	// maxPause bounds what an answer may ask for. After it, one more call
	// learns whether the ban goes on.
	maxPause = time.Hour
)

var banPattern = regexp.MustCompile(`(?i)will\s+last\s+for\s+(\d{1,9})\s+more\s+second`)

// pauseFor returns how long a throttled account is to pause.
func pauseFor(header http.Header, msg string) time.Duration {
	if m := banPattern.FindStringSubmatch(msg); m != nil {
		n, _ := strconv.Atoi(m[1]) // at most nine digits
		return min(time.Duration(n+1)*time.Second, maxPause)
	}
	for _, name := range []string{"Retry-After", "X-Rate-Limit-Reset"} {
		value := strings.TrimSpace(header.Get(name))
		if value == "" {
			continue
		}
		if s, err := strconv.ParseFloat(value, 64); err == nil {
			if s > 1e9 {
				// Some count from 1970 instead of from now.
				s = time.Until(time.Unix(int64(min(s, 1e11)), 0)).Seconds()
			}
			if s > 0 {
				return time.Duration(min(s, maxPause.Seconds()) * float64(time.Second))
			}
			continue
		}
		if at, err := http.ParseTime(value); err == nil {
			if d := time.Until(at); d > 0 {
				return min(d, maxPause)
			}
		}
	}
	return throttlePause
}
