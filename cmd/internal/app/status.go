package app

import (
	"packship/consumer"
	"packship/upstream"
)

// Status is what is going on in a replica, as /api/status shows it.
type Status struct {
	Role  consumer.Role `json:"role"`
	Ready bool          `json:"ready"`
	// Reason says why the replica is not ready, or ready and yet may start no
	// call.
	Reason   string `json:"reason,omitempty"`
	Instance string `json:"instance"`
	Version  string `json:"version"`

	Accounts   []upstream.AccountStatus   `json:"accounts"`
	Partitions []consumer.PartitionStatus `json:"partitions"`
	// Ledger is the ledger's own account of itself, null before it exists.
	Ledger      any                   `json:"ledger"`
	ParkedShops []upstream.ParkedShop `json:"parked_shops"`
	// Spending is what this process has called and been charged for, by
	// account and shop.
	Spending []upstream.Spending `json:"spending"`
	Counts   consumer.Counts     `json:"counts"`
}

// Status returns what is going on now. It is safe for concurrent use, also
// before and after Run.
func (c *Connector) Status() Status {
	c.mu.Lock()
	memory, reader, shipper := c.ledger, c.reader, c.shipper
	c.mu.Unlock()
	st := Status{
		Role: consumer.RoleJoining, Instance: c.name, Version: BuildInfo().Version,
		// A program that reads the lists finds lists, also when they are empty.
		Accounts:    append([]upstream.AccountStatus{}, c.api.Accounts()...),
		Partitions:  []consumer.PartitionStatus{},
		ParkedShops: append([]upstream.ParkedShop{}, c.api.ParkedShops()...),
		Spending:    append([]upstream.Spending{}, c.api.Spending()...),
	}
	st.Ready, st.Reason = c.Ready()
	if memory != nil {
		st.Ledger = memory.Status()
	}
	if reader != nil {
		r := reader.Status()
		st.Role = r.Role
		if st.Reason == "" {
			st.Reason = r.Reason
		}
		st.Partitions = append(st.Partitions, r.Partitions...)
	}
	if shipper != nil {
		st.Counts = shipper.Counts()
	}
	return st
}

// Lag is the number of records that wait, over all partitions of this replica.
func (st Status) Lag() int64 {
	var n int64
	for _, p := range st.Partitions {
		n += p.Lag
	}
	return n
}
