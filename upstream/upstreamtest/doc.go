// Package upstreamtest is a simulated shipping API. It stands in for the
// vendor and the platform behind it: in tests, in the demo, and as a server of
// its own.
//
// # Promises
//
// It answers as the real API would, as far as that is known, from a state of
// its own: accounts with tokens and balances, shops, orders, parcels, waybills,
// carriers. The checks are made in the platform's order and the first that fails
// answers, with one of the 60 rows of the vendor's table. What is not known of
// the real API is a switch ([Switches]). What goes wrong is a [Fault], chosen by
// order, shop, token, number, probability or script.
//
// Its checks are written from the description of the API and share nothing with
// the client that they test, or both would share one mistake.
//
// It keeps a [Journal] of every request: when its first byte arrived, its form
// in the order of the wire, what was answered, whether an order was shipped and
// what it cost. [Simulator.Verify] says what a client has done that it must
// never do.
//
// A seed fixes everything random: what happens to a call depends on the seed,
// its order and how many calls that order has had, not on scheduling.
//
// It uses the real clock through package time alone and has no goroutine that
// outlives [Simulator.Close], so it works within a bubble of testing/synctest.
// It imports neither package testing nor anything of Kafka.
//
// # Use
//
// In a test that needs orders of no particular kind:
//
//	sim := upstreamtest.New(upstreamtest.Options{AutoCreate: true})
//	defer sim.Close()
//	url, err := sim.Start("127.0.0.1:0")
//	...
//	sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ApplyThenHang, TID: "101", Count: 1})
//	...
//	for _, v := range sim.Verify() {
//		t.Error(v.Rule, v.Detail)
//	}
//
// The send endpoint is then at url + [SendPath]. A Simulator is an
// [net/http.Handler], too. For arrival times of the wire, let it serve ([Simulator.Start],
// [Simulator.Serve]), or give a server of your own [Simulator.Listener] and
// [Simulator.ConnContext].
//
// # Control API
//
// Under /__sim/ the same things can be done over HTTP. Bodies are JSON (or YAML)
// with the field names of a scenario file, durations are strings such as "1.5s";
// answers are JSON. An operation that cannot be done is answered with status
// 400 and {"error": "..."}.
//
//	GET    /__sim/                        the list of operations
//	GET    /__sim/state                   all that exists; ?format=yaml as a scenario file
//	GET    /__sim/stats                   the counters
//	GET    /__sim/verify                  {"violations": [...]}
//	GET    /__sim/journal                 requests; ?tid= ?shop= ?since=N ?limit=N
//	DELETE /__sim/journal                 forget them, and the counters
//	POST   /__sim/accounts                add one or a list; so do shops, trades,
//	                                      waybills, carriers, faults, scripts, outages
//	POST   /__sim/accounts/NAME/topup     {"points": 100}
//	POST   /__sim/accounts/NAME/rotate    answers {"token": "..."}
//	POST   /__sim/accounts/NAME/token     {"token": "..."}
//	POST   /__sim/accounts/NAME/deny      {"endpoints": ["send"]}
//	POST   /__sim/shops/ID/authorise      and unauthorise, expire-session
//	GET    /__sim/trades/SHOP/TID         the order
//	POST   /__sim/trades/SHOP/TID/pay     and cancel, hold, release, confirm
//	POST   /__sim/trades/SHOP/TID/refund  {"oids": [...]}, without: all
//	POST   /__sim/trades/SHOP/TID/ship    {"company": "SF", "out_sid": "...", "oids": [...]}: by hand
//	GET    /__sim/faults                  what still goes wrong
//	DELETE /__sim/faults                  nothing goes wrong any more
//	PUT    /__sim/latency                 {"fixed": "50ms"} or {"median": ..., "p99": ..., "factor": ...}
//	PUT    /__sim/rate                    {"per_second": 10, "window": "sliding"}
//	PUT    /__sim/switches                all switches; those left out get their default
//	PUT    /__sim/down                    {"mode": "unavailable", "for": "10s"}, {"mode": ""} ends it
//	POST   /__sim/clock                   {"advance": "1h"}
//
// # What is made up
//
// The pages that describe the API do not say what the other endpoints answer in
// full. Here, fullinfo answers data.trade and detail answers
// data.shippings.shipping, both with the platform's own field names and cut
// down to the fields asked for; shop-authorize answers data.authorized; the
// authorisation link of row 10 is in the field url. A call over the rate is
// answered as the Yii framework does.
package upstreamtest
