package operate

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"packship/schema"
)

// TestDeadLetters lists, shows, repairs and marks dead letters.
func TestDeadLetters(t *testing.T) {
	w := newWorld(t)
	ctx, o := t.Context(), w.operator()
	broken := []byte("{\"shop_id\":\"s1\",\xff\x00")
	w.append(schema.Record{Partition: 1, Key: []byte("77"), Value: broken, Headers: []schema.Header{
		{Key: "traceparent", Value: []byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")}, {Key: "ce_id", Value: []byte("evt-77")},
	}})
	w.append(schema.Record{Partition: 1, Value: []byte(`{"tid":"1"}`)})
	w.append(schema.Record{Partition: 2, Key: []byte("k"), Value: nil})
	w.settled()

	letters, err := o.DeadLetters(ctx, LetterFilter{})
	if err != nil {
		t.Fatal(err)
	}
	byReason := map[string]Letter{}
	for _, l := range letters {
		byReason[l.Reason] = l
	}
	source := func(partition, offset string) string {
		return w.settings.TopicPacked + "/" + partition + "/" + offset
	}
	want := map[string]Letter{
		"not_utf8":         {Reason: "not_utf8", Source: source("1", "0"), Key: "77", Bytes: len(broken)},
		"shop_id_unusable": {Reason: "shop_id_unusable", Source: source("1", "1"), Bytes: 11},
		"empty_value":      {Reason: "empty_value", Source: source("2", "0"), Key: "k"},
	}
	if diff := cmp.Diff(want, byReason, cmpopts.IgnoreFields(Letter{}, "ID", "Time", "Detail", "Record")); diff != "" || len(letters) != 3 {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]LetterCount{{"empty_value", 1}, {"not_utf8", 1}, {"shop_id_unusable", 1}}, CountLetters(letters)); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if some, err := o.DeadLetters(ctx, LetterFilter{Reasons: []string{"empty_value"}}); err != nil || len(some) != 1 {
		t.Errorf("by reason: %+v, %v", some, err)
	}

	// A program reads everything of one.
	l, err := o.DeadLetter(ctx, byReason["not_utf8"].ID)
	if err != nil || !bytes.Equal(l.Record.Value, broken) {
		t.Fatalf("%+v, %v", l, err)
	}
	if s := Show(l); s.Value != nil || !bytes.Equal(s.ValueBase64, broken) || len(s.Headers) != 8 {
		t.Errorf("shown: %+v", s)
	}
	text, err := o.DeadLetter(ctx, byReason["shop_id_unusable"].ID)
	if err != nil {
		t.Fatal(err)
	}
	if s := Show(text); s.Value == nil || *s.Value != `{"tid":"1"}` || s.ValueBase64 != nil {
		t.Errorf("shown: %+v", s)
	}

	// Repaired, with its own key and headers.
	still, err := o.Resend(ctx, l, []byte(packedEvent(77, "")))
	if err != nil || still != nil {
		t.Fatalf("resend: %v, %v", still, err)
	}
	records := w.topic(w.settings.TopicPacked)
	var sent *schema.Record
	for _, rec := range records {
		if _, ok := rec.Header("resent_from"); ok {
			sent = rec
		}
	}
	if sent == nil || len(records) != 4 {
		t.Fatalf("%d packed records", len(records))
	}
	headers := map[string]string{}
	for _, h := range sent.Headers {
		headers[h.Key] = string(h.Value)
	}
	if diff := cmp.Diff(map[string]string{
		"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "ce_id": "evt-77",
		"resent_from": w.settings.TopicDLQ + "/" + l.ID,
	}, headers); diff != "" || string(sent.Key) != "77" || string(sent.Value) != packedEvent(77, "") {
		t.Errorf("sent %s with key %q; headers (-want +got):\n%s", sent.Value, sent.Key, diff)
	}

	// Sent as it was it comes back.
	if still, err = o.Resend(ctx, text, nil); err != nil || still == nil || still.Reason != "shop_id_unusable" {
		t.Errorf("resend as it was: %v, %v", still, err)
	}
	w.settled()
	if r := w.results(w.settings.TopicShipped)["77"]; len(r) != 1 {
		t.Errorf("order 77: %+v, want shipped", r)
	}
	letters, err = o.DeadLetters(ctx, LetterFilter{})
	if err != nil || len(letters) != 4 {
		t.Fatalf("%d letters, %v; want 4", len(letters), err)
	}
	again := letters[3]
	full, err := o.DeadLetter(ctx, again.ID)
	if err != nil {
		t.Fatal(err)
	}
	if from, _ := full.Record.Header("resent_from"); from != w.settings.TopicDLQ+"/"+text.ID || full.Record.Key != nil {
		t.Errorf("it came back from %q with key %q", from, full.Record.Key)
	}

	if none, err := o.DeadLetters(ctx, LetterFilter{Reasons: []string{schema.ReasonCloudEvent}}); err != nil || len(none) != 0 {
		t.Errorf("a reason that none has: %+v, %v", none, err)
	}
	if _, err := o.DeadLetters(ctx, LetterFilter{Reasons: []string{"not_utf"}}); err == nil || !strings.Contains(err.Error(), `there is no reason "not_utf", and no dead letter has it; there are empty_value, not_utf8, `) {
		t.Errorf("a misspelt reason: %v", err)
	}

	// Done is done, and nothing else.
	for i, l := range slices.Backward(letters) {
		if n, err := o.MarkDone(ctx, []string{l.ID}, false); err != nil || n != 1 {
			t.Fatalf("done: %d, %v", n, err)
		}
		left, err := o.DeadLetters(ctx, LetterFilter{})
		if diff := cmp.Diff(letters[:i], left, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Fatalf("left when %s is done: %v, (-want +got):\n%s", l.ID, err, diff)
		}
	}
	if n, err := o.MarkDone(ctx, []string{again.ID}, false); err != nil || n != 0 {
		t.Errorf("done twice: %d, %v", n, err)
	}
	if all, err := o.DeadLetters(ctx, LetterFilter{All: true}); err != nil || len(all) != 4 || !all[0].Done {
		t.Errorf("all: %+v, %v", all, err)
	}

	// All before one.
	for range 4 {
		w.append(schema.Record{Topic: w.settings.TopicDLQ, Partition: 2, Value: []byte("more")})
	}
	more, err := o.DeadLetters(ctx, LetterFilter{})
	if err != nil || len(more) != 4 {
		t.Fatalf("%+v, %v; want 4 more", more, err)
	}
	if n, err := o.MarkDone(ctx, []string{more[1].ID, more[3].ID}, false); err != nil || n != 2 {
		t.Errorf("every other: %d, %v", n, err)
	}
	if n, err := o.MarkDone(ctx, []string{more[2].ID}, true); err != nil || n != 2 {
		t.Errorf("those between: %d, %v", n, err)
	}
	if left, err := o.DeadLetters(ctx, LetterFilter{}); err != nil || len(left) != 0 {
		t.Errorf("left %+v, %v", left, err)
	}
	second, err := o.DeadLetter(ctx, more[1].ID)
	if err != nil {
		t.Fatal(err)
	}
	w.expire(second.Record)
	if _, err := o.DeadLetter(ctx, more[0].ID); err == nil || !strings.Contains(err.Error(), "is deleted") {
		t.Errorf("a deleted one: %v", err)
	}

	for id, want := range map[string]string{
		"7": "is not the id", "x/1": "is not the id", "1/-1": "is not the id", "1/": "is not the id", "0/99": "there is no dead letter 0/99", "99/0": "there is no dead letter",
	} {
		if _, err := o.DeadLetter(ctx, id); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", id, err, want)
		}
	}
}
