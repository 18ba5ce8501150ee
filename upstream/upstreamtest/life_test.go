package upstreamtest_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"packship/upstream/upstreamtest"
)

// TestRandomLives has callers and operators do anything at all with a few
// orders, and looks after every step whether the platform still makes sense.
func TestRandomLives(t *testing.T) {
	const lives, steps = 60, 80
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d lives of %d steps", seed, lives, steps)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range lives {
		opts := closedWorld()
		opts.Switches.ChargeOn = []upstreamtest.ChargeMode{"", upstreamtest.ChargePlatform, upstreamtest.ChargeSuccess}[rnd.IntN(3)]
		opts.Switches.SplitOnce = rnd.IntN(2) == 0
		opts.Switches.WaybillFirst = rnd.IntN(4) == 0
		opts.Accounts[0].Balance = new(int64(rnd.IntN(60)))
		opts.Trades[0].Status = []upstreamtest.Status{upstreamtest.WaitBuyerPay, upstreamtest.WaitSellerSend}[rnd.IntN(2)]
		sim := upstreamtest.New(opts)
		for i := range steps {
			what := randomStep(t, sim, rnd, i)
			if err := sensible(sim); err != nil {
				t.Fatalf("seed %d: step %d, %s: %v", seed, i, what, err)
			}
		}
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	}
}

// randomStep does something and says what.
func randomStep(t *testing.T, sim *upstreamtest.Simulator, rnd *rand.Rand, i int) string {
	t.Helper()
	shops, tids := []string{"S1", "S1", "S1", "S2"}, []string{"1001", "1001", "1001", "2002"}
	shop, tid := shops[rnd.IntN(len(shops))], tids[rnd.IntN(len(tids))]
	var part []string
	for _, oid := range []string{"11", "12", "13", "99"} {
		if rnd.IntN(5) < 2 {
			part = append(part, oid)
		}
	}
	if rnd.IntN(4) > 0 {
		f := order(shop, tid, "out_sid", fmt.Sprintf("SF%012d", i))
		if len(part) > 0 {
			f = f.with("is_split", "1", "sub_tid", strings.Join(part, ","))
		}
		got := send(t, sim, f)
		return fmt.Sprintf("call %v: %s", f, got.Body)
	}
	operations := map[string]func() error{
		"pay":     func() error { return sim.Pay(shop, tid) },
		"cancel":  func() error { return sim.Cancel(shop, tid) },
		"hold":    func() error { return sim.Hold(shop, tid) },
		"release": func() error { return sim.Release(shop, tid) },
		"confirm": func() error { return sim.Confirm(shop, tid) },
		"refund":  func() error { return sim.Refund(shop, tid, part...) },
		"by hand": func() error { return sim.ShipByHand(shop, tid, "SF", fmt.Sprintf("SF%012d", 1000+i), part...) },
		"top up":  func() error { return sim.TopUp("north", 5) },
	}
	names := []string{"pay", "pay", "hold", "release", "release", "confirm", "by hand", "top up", "refund", "cancel"}
	// What ends an order's life comes late, or there would be little of it.
	if i < 40 {
		names = names[:8]
	}
	name := names[rnd.IntN(len(names))]
	err := operations[name]()
	return fmt.Sprintf("%s %s of %s, %v: %v", name, tid, shop, part, err)
}

// sensible returns what contradicts itself in the state and in the journal.
func sensible(sim *upstreamtest.Simulator) error {
	state := sim.Dump()
	waybills := map[string]string{} // of parcels sent, to the parcel
	for _, tr := range state.Trades {
		var oids, inParcels []string
		news, sent := 0, 0
		for _, it := range tr.Items {
			oids = append(oids, it.OID)
		}
		for _, p := range tr.Parcels {
			if len(p.SubTIDs) == 0 {
				return fmt.Errorf("parcel %s is empty", p.ID)
			}
			inParcels = append(inParcels, p.SubTIDs...)
			switch p.State {
			case upstreamtest.ParcelNew:
				news++
			case upstreamtest.ParcelSent:
				sent++
				waybills[p.ID] = p.OutSID
			case upstreamtest.ParcelClosed:
			}
			if (p.OutSID != "") != (p.State == upstreamtest.ParcelSent) {
				return fmt.Errorf("parcel %s is %s with waybill %q", p.ID, p.State, p.OutSID)
			}
		}
		slices.Sort(inParcels)
		if !slices.Equal(oids, inParcels) {
			return fmt.Errorf("order %s has items %v, its parcels %v", tr.TID, oids, inParcels)
		}
		ok := true
		switch tr.Status {
		case upstreamtest.WaitBuyerPay, upstreamtest.WaitSellerSend, upstreamtest.ForbidConsign:
			ok = sent == 0 && news > 0
		case upstreamtest.ConsignedPart:
			ok = sent > 0 && news > 0
		case upstreamtest.WaitBuyerConfirm, upstreamtest.Finished:
			ok = sent > 0 && news == 0
		case upstreamtest.Closed:
			ok = news == 0 && !slices.ContainsFunc(tr.Items, func(it upstreamtest.Item) bool { return !it.Refunded })
		case upstreamtest.ClosedByTaobao:
			ok = news == 0 && sent == 0
		}
		if !ok {
			return fmt.Errorf("order %s is %s with %d parcels waiting and %d sent", tr.TID, tr.Status, news, sent)
		}
	}
	shipped := map[string]bool{}
	var charge int64
	applied := 0
	for _, e := range sim.Journal().Calls() {
		charge += e.Charge
		if e.Applied != (e.Row == 1) {
			return fmt.Errorf("call %d is answered with row %d, applied %t", e.N, e.Row, e.Applied)
		}
		if !e.Applied {
			continue
		}
		applied++
		if shipped[e.Parcel] {
			return fmt.Errorf("parcel %s was shipped twice", e.Parcel)
		}
		shipped[e.Parcel] = true
		if waybills[e.Parcel] != e.Shipment.OutSID {
			return fmt.Errorf("parcel %s has waybill %q, call %d shipped it with %q", e.Parcel, waybills[e.Parcel], e.N, e.Shipment.OutSID)
		}
	}
	st := sim.Stats()
	if st.Applied != applied || st.TotalCharge != charge || st.AppliedTwice != 0 || st.InFlight != 0 {
		return fmt.Errorf("the calls add up to %d applied, %d points, the counters are %+v", applied, charge, st)
	}
	if a, _ := sim.Account("north"); *a.Balance < 0 {
		return fmt.Errorf("the balance is %d", *a.Balance)
	}
	return nil
}

// FuzzRequest gives the handler any request at all: it answers, in JSON, with a
// row of the table.
func FuzzRequest(f *testing.F) {
	contentType, body := order("S", "1", "is_split", "1", "sub_tid", "11,12", "feature", "identCode=11:A").encode()
	f.Add("POST", upstreamtest.SendPath, contentType, "Bearer x", body)
	f.Add("POST", "/tool/erps/detail", contentType, "Bearer x", body)
	f.Add("POST", upstreamtest.TokenPath, "application/x-www-form-urlencoded", "", []byte("grant_type=client_credentials&client_id=a"))
	f.Add("GET", "/", "", "", []byte(nil))
	f.Fuzz(func(t *testing.T, method, path, contentType, auth string, body []byte) {
		for _, r := range method {
			if r < 'A' || r > 'Z' {
				t.Skip()
			}
		}
		if method == "" || strings.HasPrefix(path, "/__sim/") {
			t.Skip()
		}
		r := httptest.NewRequest(method, "http://api.test/", strings.NewReader(string(body)))
		r.URL.Path = path
		r.Header = http.Header{"Content-Type": {contentType}, "Authorization": {auth}}
		sim := open(t, upstreamtest.Options{AutoCreate: true})
		got := post(t, sim, r)
		if path == upstreamtest.TokenPath && method == http.MethodPost {
			if got.Status != http.StatusUnauthorized {
				t.Errorf("got %d %s", got.Status, got.Body)
			}
			return
		}
		rows := upstreamtest.Rows()
		if got.Code == nil || !slices.ContainsFunc(rows, func(row upstreamtest.Row) bool { return row.Code == *got.Code && row.Message == got.Msg }) {
			t.Errorf("got %d %q", got.Status, got.Body)
		}
		if st := sim.Stats(); st.Requests != 1 || st.InFlight != 0 {
			t.Errorf("the journal has %+v", st)
		}
	})
}
