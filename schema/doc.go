// Package schema is the vocabulary of packship: the events that come in and go
// out, the key that makes two events the same shipment, and the values in which
// the other packages speak to each other about one order.
//
// It promises three things. An order id is digit-exact whatever its JSON type,
// because it never passes through a floating-point number. Two events that mean
// the same parcel have the same [Key], whatever the order of their sub-orders or
// the width of their letters. And the bytes of a [Result] depend on nothing but
// the outcome, so that publishing one again publishes the same event. They are
// never more than a record can hold, whatever the packed event was.
//
// It knows nothing of Kafka or HTTP and imports no other package of packship.
package schema
