// Package operate is what the person on call does by command: look at one
// order, plan and carry out a replay, send failed orders again, and see to the
// dead letters.
//
// Three things hold for all of it. What it says about the future comes from the
// ledger and from the connector's own code, which handles the records without
// effect. What it does can be broken off and done again: the second time finds
// what the first has done. And it makes no call itself, so that whatever it is
// told to do, the connector still decides by the ledger who is called for.
//
// The reading order: operate.go has what all commands share. A replay is planned
// in replay.go, by the connector's own code in rehearse.go, from the places of point.go
// and stood.go. A redrive is asked for and reported in redrive.go, its failures are
// found in selection.go and judged in judgement.go, its events made in rebuild.go by
// the changes of corrections.go, and sent in send.go. dlq.go and done.go have the
// dead letters, trace.go the life of an order.
package operate
