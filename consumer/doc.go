// Package consumer reads packed events from Kafka and sees each of them through
// to an outcome.
//
// [Consumer] is the member of the group: it fetches records, puts them into
// lanes, hands them to a [Handler] and commits what is settled. [Shipper] is
// that handler: what happens to one order, over small interfaces to the ledger,
// the shipping API and the result topics. The package knows no HTTP, and writes
// nothing to Kafka but offsets.
//
// # What the Consumer promises
//
//   - A committed offset never passes a record that is not settled, and never
//     goes back. (One exception: if the log itself has become shorter than the
//     committed offset, it is read, and committed, from its beginning.)
//   - The records of one order are handled one at a time, in the order of the
//     log. Different orders are handled at the same time, across partitions.
//   - The [Gate] is open only while this process is a member of the group and
//     holds partitions, after the ledger has caught up, and after the handover
//     if another process may have held them a moment ago. It closes the moment
//     the generation ends or the process is told to stop.
//   - A generation that ends stops no call that is under way. If the next one
//     gives a partition to this process again, everything goes on as it was;
//     only the gate was closed for the time of the rejoin.
//   - By default all partitions go to one live member, and to the same one for
//     as long as it lives. The others are standbys. With [Config.Shares] some
//     of them share the partitions instead, and each is told its part.
//   - Where a partition without a committed offset begins is decided once. A
//     missing answer is never taken for a missing offset.
//   - Records that have left the log unread are reported with their exact
//     offsets, in the log and in packship_skipped_offsets_total.
//   - Memory is bounded: per partition by [Config.Window] records and
//     [Config.WindowBytes] bytes, one answer to a fetch (1 MiB, or one batch if
//     that is larger, as it was compressed) for new records and one for those
//     from the shelf, and less than 32 bytes for each of at most [Config.Shelf]
//     records on the shelf.
//   - Trouble with the brokers is logged once per change, not once per try, and
//     neither a hung broker nor a hung dial keeps Run from returning.
//
// # The shelf
//
// If the handler is a [Blocker], orders that may not be sent for the time being
// do not stand in the way of others. Such an order gives up its memory and its
// place in the window; what stays is its offset and its shop. Orders that were
// handed to the handler before their shop was blocked follow as soon as the
// window is needed. All later records of a shop with orders on the shelf go
// there too, so that nothing is overtaken. When the shop reopens, its records
// are fetched again in the order of their offsets and join their lanes, through
// a quarter of the window that is kept free for them meanwhile.
//
// The committed offset stays at the first record on the shelf. After a restart
// everything behind it is read again, and the handler must know what it has
// settled already. A record that leaves the log while it is on the shelf is lost
// and reported; retention must be longer than a shop stays blocked.
//
// # Where to begin
//
//	consumer.go   Consumer: construction, Run, the order of a stop
//	session.go    one generation: joining, taking up partitions, opening the gate, commits
//	tenure.go     one partition for as long as it stays here: fetching, the window, serving a record
//	fetch.go      one fetch, of what is committed
//	watermark.go  which offset may be committed
//	lanes.go      one order at a time, orders in parallel
//	shelf.go      orders of blocked shops
//	gate.go       the right to start calls
//	balancer.go   all partitions to one member
//	spread.go     or shared out among some
//	offsets.go    the exchanges with the brokers about offsets
//	status.go     what is going on, for people and probes
//	underway.go   where each order stands that is under way
//	trouble.go    one log line per change, pauses between tries
//	config.go     Config and the numbers that are no settings
//	handler.go    Handler, Blocker
//	ports.go      Ledger, Upstream, Publisher: what the Shipper needs
//	shipper.go    Shipper: what happens to one order
//	tracing.go    what an order's span says
//
// # Non-obvious
//
//   - Only one function is given to kafka-go's Generation.Start, and it returns
//     at once: the group rejoins only after it, and any function that returns
//     ends the generation. Everything else runs under the tenure of its
//     partition or under the session.
//   - A generation's number is no proof of anything by itself: it may repeat
//     (after a lost connection) or jump. A tenure goes on only if the number is
//     the same or the next and the committed offset is one that this tenure has
//     sent.
//   - The locks are taken in the order Consumer.mu, tenure.mu, lanes.mu. None is
//     held over a wait or while the handler is called.
//   - Offsets are committed by Client.OffsetCommit only: Generation.CommitOffsets
//     would erase the metadata beside them.
package consumer
