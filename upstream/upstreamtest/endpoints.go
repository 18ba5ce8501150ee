package upstreamtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// tokenLife is how long a token of the vendor's is valid.
const tokenLife = 3000 * 24 * time.Hour

// handleToken gives out a new token, which displaces the account's old one.
func (c *call) handleToken() answer {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.form.value("grant_type") != "client_credentials" {
		return oauthError("unsupported_grant_type")
	}
	id := c.form.value("client_id")
	for _, a := range s.world.accounts {
		if id == "" || a.ClientID != id || a.Secret != c.form.value("client_secret") {
			continue
		}
		s.world.setToken(a, s.newToken(a.Name))
		a.TokenExpires = s.now().Add(tokenLife)
		if c.sw.BindTokenIP {
			a.TokenIP = c.ip
		}
		s.journal.note(c.entry, func(e *Entry) { e.Account = a.Name })
		return answer{raw: fmt.Appendf(nil, `{"access_token":%q,"expires_in":%d,"token_type":"Bearer","scope":null}`,
			a.Token, int(tokenLife.Seconds()))}
	}
	return oauthError("invalid_client")
}

func oauthError(code string) answer {
	return answer{status: http.StatusUnauthorized, raw: fmt.Appendf(nil, `{"error":%q,"error_description":"see the error"}`, code)}
}

// look answers the endpoints that change nothing. The caller holds the
// simulator's mutex.
func (c *call) look() answer {
	var data any
	switch c.endpoint {
	case endpointAuthorize:
		data = map[string]any{"authorized": true}
	default:
		if row := c.owned(); row != 0 {
			return c.answerRow(row)
		}
		data = c.tradeData()
		if c.endpoint == endpointDetail {
			data = c.shippingData()
		}
	}
	if c.spend(ChargeSuccess) {
		return c.answerRow(rowNoBalance)
	}
	a := c.answerRow(rowOK)
	b, err := json.Marshal(data)
	if err != nil {
		panic(err) // maps of strings and numbers always encode
	}
	if a.data = b; !c.sw.RawChinese {
		a.data = asciiJSON(b)
	}
	return a
}

// asciiJSON escapes what is not ASCII in an encoded JSON value.
func asciiJSON(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for _, r := range string(b) {
		if r < utf8.RuneSelf {
			out = utf8.AppendRune(out, r)
			continue
		}
		quoted := appendPHP(nil, string(r), false)
		out = append(out, quoted[1:len(quoted)-1]...)
	}
	return out
}

// wanted keeps the fields that the call asks for; without a wish, all.
func (c *call) wanted(m map[string]any) map[string]any {
	list := c.form.value("fields")
	if list == "" {
		return m
	}
	names := strings.Split(list, ",")
	for name := range m {
		if !slices.Contains(names, name) {
			delete(m, name)
		}
	}
	return m
}

// platformTime is how the platform writes times.
const platformTime = "2006-01-02 15:04:05"

// tradeData is what the fullinfo endpoint says of an order.
func (c *call) tradeData() any {
	t := c.trade
	orders := []any{}
	for _, it := range t.Items {
		status, refund := t.itemStatus(it), "NO_REFUND"
		if it.Refunded {
			refund = "SUCCESS"
		}
		orders = append(orders, map[string]any{
			"oid": json.Number(it.OID), "num": max(it.Quantity, 1), "status": status, "refund_status": refund,
		})
	}
	m := map[string]any{"tid": json.Number(t.TID), "status": t.Status, "orders": map[string]any{"order": orders}}
	if !t.PaidAt.IsZero() {
		m["pay_time"] = t.PaidAt.Format(platformTime)
	}
	return map[string]any{"trade": c.wanted(m)}
}

// itemStatus is the state of a part order: that of the parcel it is in.
func (t *Trade) itemStatus(it Item) Status {
	if it.Refunded {
		return Closed
	}
	for i := range t.Parcels {
		if p := &t.Parcels[i]; slices.Contains(p.SubTIDs, it.OID) && t.split() {
			switch p.State {
			case ParcelSent:
				return WaitBuyerConfirm
			case ParcelClosed:
				return Closed
			case ParcelNew:
				return WaitSellerSend
			}
		}
	}
	return t.Status
}

// shippingData is what the detail endpoint says of an order's parcels.
func (c *call) shippingData() any {
	t := c.trade
	list := []any{}
	for i := range t.Parcels {
		p := &t.Parcels[i]
		// The platform's word for what a seller has shipped by himself is that
		// the receiver has accepted it.
		status, confirm := "CREATED", "no"
		switch p.State {
		case ParcelSent:
			status, confirm = "ACCEPTED_BY_RECEIVER", "yes"
		case ParcelClosed:
			status = "CLOSED"
		case ParcelNew:
		}
		split := 0
		if t.split() {
			split = 1
		}
		subs := make([]json.Number, len(p.SubTIDs))
		for k, id := range p.SubTIDs {
			subs[k] = json.Number(id)
		}
		name := p.Company
		if k := c.s.world.carriers[strings.ToUpper(p.Company)]; k != nil && k.Name != "" {
			name = k.Name
		}
		list = append(list, c.wanted(map[string]any{
			"tid": json.Number(t.TID), "status": status, "seller_confirm": confirm, "out_sid": p.OutSID,
			"company_name": name, "is_split": split, "sub_tids": subs,
		}))
	}
	return map[string]any{"shippings": map[string]any{"shipping": list}, "total_results": len(list)}
}
