// The go program packs one order with kafka-go, in the way that docs/producers.md
// explains: go run . localhost:9092 erp.order.packed.v1.
package main

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"github.com/segmentio/kafka-go"
)

// packed is an order-packed event. Ids are strings: they are longer than a
// float64 is exact.
type packed struct {
	EventID     string    `json:"event_id"`
	OccurredAt  time.Time `json:"occurred_at"`
	ShopID      string    `json:"shop_id"`
	TID         string    `json:"tid"`
	OutSID      string    `json:"out_sid"`
	CompanyCode string    `json:"company_code"`
}

func main() {
	if err := pack(os.Args[1], os.Args[2]); err != nil {
		panic(err)
	}
}

func pack(broker, topic string) error {
	w := &kafka.Writer{
		Addr:  kafka.TCP(broker),
		Topic: topic,
		// The default would put the events of an order into any partition.
		Balancer:     kafka.Murmur2Balancer{},
		RequiredAcks: kafka.RequireAll,
		BatchTimeout: 10 * time.Millisecond,
	}
	now := time.Now()
	event := packed{
		EventID:     "wms-go-000001",
		OccurredAt:  now,
		ShopID:      "123456789",
		TID:         "3941893279420000001",
		OutSID:      "SF0000000000001",
		CompanyCode: "SF",
	}
	value, err := json.Marshal(event)
	if err != nil {
		return err
	}
	err = w.WriteMessages(context.Background(), kafka.Message{Key: []byte(event.TID), Value: value, Time: now})
	if err != nil {
		return err
	}
	return w.Close()
}
