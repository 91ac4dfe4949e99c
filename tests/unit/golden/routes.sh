set -e
ip route replace 10.244.0.0/24 via 192.0.2.11
ip route replace 10.244.2.0/24 via 192.0.2.13
nft -f - <<'EOF'
table ip spdk-k8s
delete table ip spdk-k8s
table ip spdk-k8s {
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 10.244.1.0/24 ip daddr != 10.244.0.0/16 masquerade
  }
}
EOF
