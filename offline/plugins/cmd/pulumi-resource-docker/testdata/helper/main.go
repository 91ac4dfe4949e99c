// helper is all that the tests' images contain.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	switch os.Args[1] {
	case "sleep":
		time.Sleep(10 * time.Minute)
	case "fail":
		fmt.Println(os.Args[2])
		code, _ := strconv.Atoi(os.Args[3])
		os.Exit(code)
	case "is": // whether a file has a content
		b, err := os.ReadFile(os.Args[2])
		if err != nil || string(b) != os.Args[3] {
			fmt.Printf("%s is %q, %v\n", os.Args[2], b, err)
			os.Exit(1)
		}
	}
}
