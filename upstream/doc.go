// Package upstream is the shipping API: one call, what its answer means, and
// when the next call may be made.
//
// # What it promises
//
//   - A call is one HTTP request. It is never repeated, redirected or resent by
//     this package or the transport under it; to call again is the caller's
//     decision, made from the [schema.Answer].
//   - Nothing counts as shipped but an HTTP 200 whose code is there and 0 and
//     whose every element says success.
//   - [Turn.Send] knows whether a request has left. If it says that nothing was
//     reached, no byte of the request was on the wire; if a byte may have been,
//     the outcome is what the answer says, and without an answer it is unknown.
//   - Within any second no more calls of an account leave than its rate, over
//     all its orders, retries and probes, also when timers are late.
//   - A broken account holds its own orders only, and a broken shop its own.
//     Neither fails an order. Each is tried with one waiting order: after a new
//     token, when an operator says so, or after a long while.
//   - Tokens are in no log, error, metric or answer, and neither is the link by
//     which a seller authorises a shop. [ParkedShop] alone shows that, to an
//     operator.
//
// It knows nothing of Kafka and of what became of a shipment before: whether
// "already shipped" is our own doing is for the caller to say.
//
// # How an order passes
//
// [Upstream.Serves] and [Upstream.Validate] come first and cost nothing.
// [Upstream.Admit] waits until a call could be made before long, and gives a
// [Turn]. Between that and its Send the caller writes down what it is about to
// do. Send makes the connection, takes the token, and lets the first byte go
// unless something has happened meanwhile.
//
// # Where things are
//
//	config.go    what is to be set, and what is wrong with it
//	upstream.go  the API of this package: Upstream, Turn, their states
//	account.go   one account: what it holds together, its token, its status
//	turns.go     who may call next
//	judge.go     what an answer says of the account, the shop and the API
//	holds.go     halted accounts, parked shops, and what ends both
//	spending.go  what calls have cost
//	balance.go   how long an account's points last
//	pacer.go     the rate limit
//	launch.go    the moment at which a call leaves, or does not
//	conn.go      connections whose first write waits for that moment
//	family.go    all of them by IPv4, or all by IPv6
//	call.go      the form and one HTTP exchange
//	answer.go    what a reply means
//	table.go     the answer table and how a text is found in it
//	body.go      lenient reading of the API's JSON
//	validate.go  the rules that an event must keep before it may cost money
//	feature.go   the grammar of the feature field
//	origin.go    rules on where an order and its parcel come from
//	carrier.go   the carrier catalogue
//	metrics.go   metrics
//	tracing.go   the span of a call
//
// The data is in codes.csv (the answers of the API), rows.csv (what they say of
// an attempt) and carriers.yaml.
//
// # Non-obvious
//
//   - Locks are taken in the order launch, account, pacer. The breaker is only
//     ever called under the account's lock.
//   - A call is refused in the connection's Write and nowhere else. Cancelling
//     its request at that point would be a race with writing it.
//   - The transport may return an answer to a request that has not left: some
//     servers say good-bye to an idle connection with one. It is thrown away.
package upstream
