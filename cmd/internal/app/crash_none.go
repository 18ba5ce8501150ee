//go:build !crashpoints

package app

import "packship/consumer"

// crash is where a build with the tag crashpoints kills the process on purpose,
// for tests. In every other build there is nothing of it.
type crash struct{}

func newCrash(*Settings) *crash { return nil }

func (*crash) kafka(dial DialContext) DialContext { return dial }

func (*crash) upstream(dial DialContext) DialContext { return dial }

func (*crash) ports(cfg consumer.ShipperConfig) consumer.ShipperConfig { return cfg }

func (*crash) handler(s *consumer.Shipper) consumer.Handler { return s }
