// Reads golden messages with the generated types: go run . FIXTURES
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

type fixture struct {
	Name    string          `json:"name"`
	Message json.RawMessage `json:"message"`
}

// pay checks by hand that the fields of exactly one member are set: the generated type has the fields of both.
func pay(payment Payment) (string, error) {
	switch {
	case payment.Kind == Card && payment.LastDigits != nil:
		return "card " + *payment.LastDigits, nil
	case payment.Kind == Invoice && payment.Days != nil:
		return fmt.Sprintf("invoice, %d days", *payment.Days), nil
	}
	return "", fmt.Errorf("payment of kind %q lacks fields", payment.Kind)
}

// A Decimal arrives as a text. The reader's schema also allows a number.
func amount(total *Total) string {
	if total.String != nil {
		return *total.String
	}
	return fmt.Sprint(*total.Double)
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	var fixtures []fixture
	if err := json.Unmarshal(text, &fixtures); err != nil {
		panic(err)
	}
	for _, one := range fixtures {
		event, err := UnmarshalEnvelope(one.Message)
		if err != nil {
			fmt.Printf("%s: REFUSED: %v\n", one.Name, err)
			os.Exit(1)
		}
		paid, err := pay(event.Data.Payment)
		if err != nil {
			fmt.Printf("%s: REFUSED: %v\n", one.Name, err)
			os.Exit(1)
		}
		fmt.Printf("%s: %s by %s\n", one.Name, amount(event.Data.Total), paid)
	}
}
