package upstreamtest_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"packship/upstream/upstreamtest"
)

// fetchToken asks for a token as an OAuth client does.
func fetchToken(t *testing.T, sim *upstreamtest.Simulator, id, secret, from string) (token string, status int) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, upstreamtest.TokenPath,
		strings.NewReader("grant_type=client_credentials&client_id="+id+"&client_secret="+secret))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.RemoteAddr = from
	got := post(t, sim, r)
	var body struct {
		Token   string `json:"access_token"`
		Expires int64  `json:"expires_in"`
		Type    string `json:"token_type"`
	}
	if err := json.Unmarshal([]byte(got.Body), &body); err != nil {
		t.Fatal(err)
	}
	if got.Status == 200 && (len(body.Token) != 40 || body.Expires != 3000*24*3600 || body.Type != "Bearer") {
		t.Errorf("got %s", got.Body)
	}
	return body.Token, got.Status
}

func sendWith(t *testing.T, sim *upstreamtest.Simulator, f form, token, from string) reply {
	t.Helper()
	r := f.request(upstreamtest.SendPath)
	r.Header.Set("Authorization", "Bearer "+token)
	r.RemoteAddr = from
	return post(t, sim, r)
}

const here, elsewhere = "192.0.2.1:1000", "192.0.2.2:1000"

func TestTokenEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := closedWorld()
		opts.Accounts[0].ClientID, opts.Accounts[0].Secret = "id", "secret"
		sim := upstreamtest.New(opts)
		wantRow(t, send(t, sim, good), 1)
		if _, status := fetchToken(t, sim, "id", "wrong", here); status != 401 {
			t.Errorf("with a wrong secret: got %d", status)
		}
		if _, status := fetchToken(t, sim, "", "", here); status != 401 {
			t.Errorf("with no id: got %d", status)
		}
		one, status := fetchToken(t, sim, "id", "secret", here)
		if status != 200 {
			t.Fatalf("got status %d", status)
		}
		wantRow(t, send(t, sim, good), 11) // the old token is displaced
		wantRow(t, sendWith(t, sim, good, one, here), 15)
		wantRow(t, sendWith(t, sim, good, one, elsewhere), 15)
		two, _ := fetchToken(t, sim, "id", "secret", here)
		if one == two {
			t.Error("the same token again")
		}
		wantRow(t, sendWith(t, sim, good, one, here), 11)
		wantRow(t, sendWith(t, sim, good, two, here), 15)
		sim.Advance(3000*24*time.Hour - time.Second)
		wantRow(t, sendWith(t, sim, good, two, here), 15)
		sim.Advance(time.Second)
		wantRow(t, sendWith(t, sim, good, two, here), 11)
		if st := sim.Stats(); st.TokenCalls != 4 || st.UnknownToken != 3 {
			t.Errorf("got %d calls for tokens, %d with a bad one, want 4 and 3", st.TokenCalls, st.UnknownToken)
		}
		r := httptest.NewRequest(http.MethodPost, upstreamtest.TokenPath, strings.NewReader("grant_type=password"))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if got := post(t, sim, r); got.Status != 401 || !strings.Contains(got.Body, "unsupported_grant_type") {
			t.Errorf("another grant: got %d %s", got.Status, got.Body)
		}
	})
}

// TestTokenIsBoundToAnAddress: a token that is used from elsewhere is taken as
// stolen, and dies for its owner, too.
func TestTokenIsBoundToAnAddress(t *testing.T) {
	opts := closedWorld()
	opts.Accounts[0].ClientID, opts.Accounts[0].Secret = "id", "secret"
	opts.Switches.BindTokenIP = true
	sim := open(t, opts)
	wantRow(t, sendWith(t, sim, good, token, here), 1) // bound by its first use
	wantRow(t, sendWith(t, sim, good, token, here), 15)
	wantRow(t, sendWith(t, sim, good, token, elsewhere), 11)
	wantRow(t, sendWith(t, sim, good, token, here), 11)
	fresh, _ := fetchToken(t, sim, "id", "secret", elsewhere)
	wantRow(t, sendWith(t, sim, good, fresh, here), 11)
	wantRow(t, sendWith(t, sim, good, fresh, elsewhere), 11)
}

func TestTokenEndpointFaults(t *testing.T) {
	opts := closedWorld()
	opts.Accounts[0].ClientID, opts.Accounts[0].Secret = "id", "secret"
	sim := open(t, opts)
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.HTTPStatus(503), Endpoint: "token", Count: 1})
	wantRow(t, send(t, sim, good), 1)
	r := httptest.NewRequest(http.MethodPost, upstreamtest.TokenPath, strings.NewReader("grant_type=client_credentials&client_id=id&client_secret=secret"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if got := post(t, sim, r); got.Status != 503 {
		t.Errorf("got %d %s", got.Status, got.Body)
	}
	wantRow(t, send(t, sim, good), 15) // nothing was displaced
}

func TestRotatedTokensOfAutoCreatedAccountsDie(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true})
	wantRow(t, send(t, sim, order("S", "1")), 1)
	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.TokenDisplaced, Count: 1})
	wantRow(t, send(t, sim, order("S", "2")), 11)
	wantRow(t, send(t, sim, order("S", "2")), 11)
	wantRow(t, sendWith(t, sim, order("S", "2"), "another", here), 1)
	if err := sim.SetToken("auto-"+token, token); err != nil {
		t.Fatal(err)
	}
	wantRow(t, send(t, sim, order("S", "2")), 15)
}

func TestFullInfo(t *testing.T) {
	opts := closedWorld()
	splitTrade(&opts)
	sim := open(t, opts)
	got := post(t, sim, good.request("/tool/erps/fullinfo"))
	wantRow(t, got, 1)
	var data struct {
		Trade struct {
			TID     json.Number `json:"tid"`
			Status  string      `json:"status"`
			PayTime string      `json:"pay_time"`
			Orders  struct {
				Order []struct {
					OID    json.Number `json:"oid"`
					Num    int         `json:"num"`
					Status string      `json:"status"`
					Refund string      `json:"refund_status"`
				} `json:"order"`
			} `json:"orders"`
		} `json:"trade"`
	}
	if err := json.Unmarshal(got.Data, &data); err != nil {
		t.Fatal(err)
	}
	tr := data.Trade
	if tr.TID != "1001" || tr.Status != "SELLER_CONSIGNED_PART" || tr.PayTime != "2026-11-01 00:00:00" || len(tr.Orders.Order) != 5 {
		t.Errorf("got %s", got.Data)
	}
	var seen []string
	for _, o := range tr.Orders.Order {
		seen = append(seen, string(o.OID)+" "+o.Status+" "+o.Refund)
	}
	want := "11 WAIT_BUYER_CONFIRM_GOODS NO_REFUND,12 WAIT_SELLER_SEND_GOODS NO_REFUND,13 WAIT_SELLER_SEND_GOODS NO_REFUND," +
		"14 WAIT_SELLER_SEND_GOODS NO_REFUND,15 TRADE_CLOSED SUCCESS"
	if got := strings.Join(seen, ","); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}

	got = post(t, sim, good.with("fields", "tid,status").request("/tool/erps/fullinfo"))
	if want := `{"trade":{"status":"SELLER_CONSIGNED_PART","tid":1001}}`; string(got.Data) != want {
		t.Errorf("got %s, want %s", got.Data, want)
	}
	wantRow(t, post(t, sim, good.with("tid", "999").request("/tool/erps/fullinfo")), 13)
	wantRow(t, post(t, sim, good.with("tid", "2002").request("/tool/erps/fullinfo")), 49)
	if st := sim.Stats(); st.Calls != 0 || st.TotalCharge != 4 || st.Requests != 4 {
		t.Errorf("got %+v", st)
	}
}

func TestDetail(t *testing.T) {
	opts := closedWorld()
	splitTrade(&opts)
	sim := open(t, opts)
	wantRow(t, send(t, sim, good.with("is_split", "1", "sub_tid", "14,12", "company_code", "YTO", "out_sid", "YT00000000001")), 1)
	got := post(t, sim, good.with("fields", "status,out_sid,company_name,is_split,sub_tids,seller_confirm").request("/tool/erps/detail"))
	wantRow(t, got, 1)
	want := `{"shippings":{"shipping":[` +
		`{"company_name":"\u987a\u4e30\u901f\u8fd0","is_split":1,"out_sid":"SF0000000000001","seller_confirm":"yes","status":"ACCEPTED_BY_RECEIVER","sub_tids":[11]},` +
		`{"company_name":"","is_split":1,"out_sid":"","seller_confirm":"no","status":"CREATED","sub_tids":[13]},` +
		`{"company_name":"","is_split":1,"out_sid":"","seller_confirm":"no","status":"CLOSED","sub_tids":[15]},` +
		`{"company_name":"\u5706\u901a\u901f\u9012","is_split":1,"out_sid":"YT00000000001","seller_confirm":"yes","status":"ACCEPTED_BY_RECEIVER","sub_tids":[14,12]}` +
		`]},"total_results":4}`
	if string(got.Data) != want {
		t.Errorf("got  %s\nwant %s", got.Data, want)
	}
	opts.Accounts[0].Denied = []string{"detail"}
	sim = open(t, opts)
	wantRow(t, post(t, sim, good.request("/tool/erps/detail")), 8)
}

func TestShopAuthorize(t *testing.T) {
	sim := open(t, closedWorld())
	f := form{{"shop_id", "S1"}}
	got := post(t, sim, f.request("/tool/erps/shop-authorize"))
	wantRow(t, got, 1)
	if string(got.Data) != `{"authorized":true}` {
		t.Errorf("got %s", got.Data)
	}
	if err := sim.Unauthorise("S1"); err != nil {
		t.Fatal(err)
	}
	got = post(t, sim, f.request("/tool/erps/shop-authorize"))
	wantRow(t, got, 10)
	if got.URL == "" {
		t.Error("there is no link")
	}
}

// TestLookupChargesOnSuccess: where only successes cost, a lookup without
// balance is refused.
func TestLookupChargesOnSuccess(t *testing.T) {
	opts := closedWorld()
	opts.Switches.ChargeOn = upstreamtest.ChargeSuccess
	opts.Accounts[0].Balance = new(int64(1))
	sim := open(t, opts)
	wantRow(t, post(t, sim, good.request("/tool/erps/detail")), 1)
	wantRow(t, post(t, sim, good.request("/tool/erps/detail")), 9)
}

func TestNotFoundStyles(t *testing.T) {
	for style, want := range map[upstreamtest.NotFoundStyle]struct {
		status int
		part   string
	}{
		upstreamtest.NotFoundCode: {200, `{"code":404,`},
		upstreamtest.NotFoundYii:  {404, `{"name":"Not Found","message":"Page not found.","code":0,"status":404}`},
		upstreamtest.NotFoundHTML: {404, `<html>`},
	} {
		sim := open(t, upstreamtest.Options{AutoCreate: true, Switches: upstreamtest.Switches{NotFound: style}})
		for _, path := range []string{"/", "/tool/erps/sendx", "/tool/erps/send/"} {
			if got := post(t, sim, good.request(path)); got.Status != want.status || !strings.HasPrefix(got.Body, want.part) {
				t.Errorf("%s %s: got %d %s", style, path, got.Status, got.Body)
			}
		}
		got := post(t, sim, httptest.NewRequest(http.MethodGet, upstreamtest.SendPath, nil))
		if got.Status != want.status || !strings.HasPrefix(got.Body, want.part) {
			t.Errorf("%s GET: got %d %s", style, got.Status, got.Body)
		}
	}
}

func TestErrorData(t *testing.T) {
	for style, want := range map[upstreamtest.DataStyle]string{
		"": `,"data":[]}`, upstreamtest.DataArray: `,"data":[]}`, upstreamtest.DataObject: `,"data":{}}`,
		upstreamtest.DataNull: `,"data":null}`, upstreamtest.DataString: `,"data":""}`, upstreamtest.DataAbsent: ``,
	} {
		sim := open(t, upstreamtest.Options{Switches: upstreamtest.Switches{ErrorData: style}})
		got := send(t, sim, good)
		wantRow(t, got, 11)
		if !strings.HasSuffix(got.Body, want) || (want == "" && strings.Contains(got.Body, "data")) {
			t.Errorf("%s: got %s", style, got.Body)
		}
	}
}

func TestEscapes(t *testing.T) {
	for raw, want := range map[bool]string{false: `"msg":"\u8eab\u4efd\u51ed\u8bc1\u65e0\u6548"`, true: `"msg":"身份凭证无效"`} {
		sim := open(t, upstreamtest.Options{Switches: upstreamtest.Switches{RawChinese: raw}})
		if got := send(t, sim, good); !strings.Contains(got.Body, want) {
			t.Errorf("raw %t: got %s", raw, got.Body)
		}
	}
}

func TestURLEncodedBySwitch(t *testing.T) {
	sim := open(t, upstreamtest.Options{AutoCreate: true, Switches: upstreamtest.Switches{AcceptURLEncoded: true}})
	r := httptest.NewRequest(http.MethodPost, upstreamtest.SendPath, strings.NewReader("shop_id=S&tid=1&out_sid=SF1234567890123&company_code=SF"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Authorization", "Bearer "+token)
	wantRow(t, post(t, sim, r), 1)
}

func TestShopChangesItsSeller(t *testing.T) {
	sim := open(t, closedWorld())
	sim.AddShop(upstreamtest.Shop{ID: "S2", Seller: "nick"})
	wantRow(t, send(t, sim, order("S1", "2002")), 1) // shops of one seller share orders
	sim.AddShop(upstreamtest.Shop{ID: "S2", Seller: "other"})
	wantRow(t, send(t, sim, order("S1", "2002")), 49)
	wantRow(t, send(t, sim, order("S2", "2002")), 15)
}
