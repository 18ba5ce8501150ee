package upstreamtest

import (
	_ "embed" // for the answer table
	"encoding/csv"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"unicode"
)

//go:embed rows.csv
var rowsCSV string

// Row is one row of the answer table on the vendor's page.
type Row struct {
	N       int    // 1 to 60, in the order of the page
	Code    int    // what the answer's code field says
	Message string // as the page spells it
	Slug    string
	SubCode string // the platform's own error code, "" where none is known
}

// Rows returns the answer table in the order of the page. The caller owns the
// slice.
func Rows() []Row {
	return append([]Row(nil), table()...)
}

// RowN returns the row with number n of the answer table.
func RowN(n int) (Row, bool) {
	if n < 1 || n > len(table()) {
		return Row{}, false
	}
	return table()[n-1], true
}

// table parses the embedded answer table. The file is part of the program, so
// a broken one is a panic that the first test meets.
var table = sync.OnceValue(func() []Row {
	records, err := csv.NewReader(strings.NewReader(rowsCSV)).ReadAll()
	if err != nil {
		panic(fmt.Sprintf("upstreamtest: rows.csv: %v", err))
	}
	rows := make([]Row, 0, len(records)-1)
	for _, rec := range records[1:] {
		n, err := strconv.Atoi(rec[0])
		if err != nil || n != len(rows)+1 {
			panic("upstreamtest: rows.csv: row " + rec[0] + " is out of order")
		}
		code, err := strconv.Atoi(rec[1])
		if err != nil {
			panic(fmt.Sprintf("upstreamtest: rows.csv: row %d: %v", n, err))
		}
		rows = append(rows, Row{N: n, Code: code, Message: rec[2], Slug: rec[3], SubCode: rec[4]})
	}
	return rows
})

// platformCode marks the rows that the vendor passes on from the platform.
const platformCode = 614

// The numbers of the rows that the simulator itself has to name.
const (
	rowOK                = 1
	rowBadRequest        = 2
	rowNoSeller          = 4
	rowRetryLater        = 6
	rowNotOffered        = 7
	rowNoPermission      = 8
	rowNoBalance         = 9
	rowShopUnauthorised  = 10
	rowBadToken          = 11
	rowBadPath           = 12
	rowNoTrade           = 13
	rowNoRight           = 14
	rowStatusWrong       = 15
	rowNoCarrier         = 16
	rowNoWaybill         = 17
	rowWaybillRule       = 18
	rowParameterInvalid  = 19
	rowAddressBook       = 21
	rowNoSession         = 22
	rowAlreadyCreated    = 23
	rowNameTooLong       = 24
	rowNotSelfContact    = 25
	rowTradeStatus       = 26
	rowNotSubscribed     = 27
	rowOutOfRange        = 28
	rowWaybillFake       = 30
	rowWaybillExpired    = 31
	rowCollectedEarly    = 32
	rowAddressDiffers    = 33
	rowUsedSuspect       = 34
	rowWaybillUsed       = 35
	rowSameAddress       = 36
	rowSplitPair         = 37
	rowNoSubTID          = 38
	rowSplitNeedsList    = 39
	rowSplitFlow         = 40
	rowSplitNeedsBoth    = 41
	rowSplitFlagOne      = 42
	rowNoParcel          = 44
	rowNotSplit          = 45
	rowNoExactMatch      = 46
	rowTradeNotFound     = 47
	rowForeignTrade      = 49
	rowSplitCheck        = 50
	rowTypeMismatch      = 51
	rowFeature           = 52
	rowSystemException   = 53
	rowForeignNick       = 54
	rowShipException     = 55
	rowCarrierUnknown    = 56
	rowCarrierRemoved    = 57
	rowParcelNotNew      = 58
	rowParcelClosed      = 59
	rowNotByThisEndpoint = 60
)

// topTexts are the platform's own texts that say more than the page does.
var topTexts = map[int]string{
	rowStatusWrong:  "订单状态不对该物流订单已经发货或者已关闭，不能重复发货",
	rowParcelClosed: "推荐物流的订单状态为关闭状态,无需发货处理",
}

// text returns the row's message in the given style. Only what comes from the
// platform varies: the vendor writes its own texts as its page has them.
func (r Row) text(style MessageStyle) string {
	if r.Code != platformCode {
		return r.Message
	}
	switch style {
	case MessagesTop:
		if s, ok := topTexts[r.N]; ok {
			return s
		}
		return unspaced(r.Message)
	case MessagesSubCode:
		if r.SubCode != "" {
			return r.SubCode + " " + r.Message
		}
		return r.Message
	default:
		return r.Message
	}
}

// unspaced undoes the page's typography: no spaces between scripts, full-width
// commas, no full stop at the end.
func unspaced(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return -1
		case r == ',':
			return '，'
		default:
			return r
		}
	}, s)
	return strings.TrimSuffix(s, "。")
}
