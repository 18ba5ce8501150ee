// Package operate is what the person on call does by command: look at one
// order, plan and carry out a replay, send failed orders again, and see to the
// dead letters.
//
// Three things hold for all of it. What it says about the future comes from the
// ledger and from the connector's own code, which handles the records without
// effect. What it does can be broken off and done again: the second time finds
// what the first has done. And it makes no call itself, so that whatever it is
// told to do, the connector still decides by the ledger who is called for.
package operate
