// Looks a name up by Go's own resolver and prints its addresses, or what went wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

func main() {
	addresses, err := net.DefaultResolver.LookupHost(context.Background(), os.Args[1])
	var failure *net.DNSError
	switch {
	case err == nil:
		for _, address := range addresses {
			fmt.Println(address)
		}
	case errors.As(err, &failure) && failure.IsNotFound:
		fmt.Println("NONAME")
	case errors.As(err, &failure) && failure.IsTemporary:
		fmt.Println("AGAIN")
	default:
		fmt.Println(err)
	}
}
