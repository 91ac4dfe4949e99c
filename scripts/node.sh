# shellcheck shell=bash
# Prepares a machine for kubeadm: packages, containerd with the private registry's login, Kubernetes' binaries, CNI.
# in: REGISTRY REGISTRY_HOSTS REGISTRY_CA BUNDLE PAUSE CNI_CONFIG ROUTES NODE_IP PACKAGES SYNC
#     RESERVED_CPUS (with a CPU plan: cores that are not the pods')
certs=/etc/containerd/certs.d
patches=/etc/kubernetes/patches

step() {
  if [ "$1" = down ]; then
    down
    return
  fi
  # shellcheck disable=SC2086 # a list of names
  packages $PACKAGES
  ! pods_never_end || fail "$(hostname) has containerd $(dpkg-query -W -f '${Version}' containerd), which cannot end pods where" \
    "AppArmor confines runc; mend: apt-get install --only-upgrade containerd, from the distribution's updates"
  record_kernel
  kernel
  registry_access
  containerd_config
  bundle
  kubelet_config
  cni
}

# Records, for the undo, the kernel settings and nft tables that kubelet, kube-proxy and these steps change.
sysctls=(net.ipv4.ip_forward net.ipv4.conf.all.route_localnet fs.inotify.max_user_instances
  vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops)
record_kernel() {
  [ ! -f "$STATE/sysctl" ] || return 0
  nft list tables | write 0644 "$STATE/nft-tables" || true
  { sysctl "${sysctls[@]}" 2>/dev/null || true; } | write 0644 "$STATE/sysctl" || true
}

kernel() {
  modprobe -qa overlay br_netfilter || true # built in, or loaded by the machine below a container
  write 0644 /etc/modules-load.d/spdk-k8s.conf <<<$'overlay\nbr_netfilter' || true
  # A kernel gives each user 128 inotify instances, which all nodes that are containers of one machine share: each takes 15
  # to 30. After a boot the limit must be raised before kubelet starts. A line that begins with - may fail.
  local instances file=/etc/sysctl.d/90-spdk-k8s.conf
  instances=$(cat /proc/sys/fs/inotify/max_user_instances)
  write 0644 $file <<EOF || true
net.ipv4.ip_forward = 1
-fs.inotify.max_user_instances = $((instances > 1024 ? instances : 1024))
EOF
  sysctl -q -p $file
}

registry_access() {
  local dir=$certs/$REGISTRY earlier
  earlier=$(cat "$STATE/registry" 2>/dev/null) || earlier=$REGISTRY
  [ "$earlier" = "$REGISTRY" ] || rm -rf "${certs:?}/$earlier" # the login there is not left behind
  write 0644 "$STATE/registry" <<<"$REGISTRY" || true
  [ -z "${REGISTRY_CA:-}" ] || write 0644 "$dir/ca.crt" <<<"$REGISTRY_CA" || true
  write 0600 "$dir/hosts.toml" <<<"$REGISTRY_HOSTS" || true
  local answer url
  url=$(sed -n 's/^server = "\(.*\)"$/\1/p' <<<"$REGISTRY_HOSTS")
  answer=$(sed -n 's/.*"Basic \(.*\)".*/header = "Authorization: Basic \1"/p' <<<"$REGISTRY_HOSTS" |
    curl -s -o /dev/null -w '%{http_code}' --max-time 20 --retry 3 --retry-connrefused --noproxy '*' -K - \
      ${REGISTRY_CA:+--cacert "$dir/ca.crt"} "$url/v2/") || true
  case $answer in
  200) ;;
  401 | 403) fail "the registry $REGISTRY does not let $(hostname) in: its password is another one than the stack's;" \
    "mend: pulumi up --replace '**::registry'" ;;
  *) fail "the registry $REGISTRY does not answer $(hostname) as it should ($answer); on master: systemctl status docker-registry" ;;
  esac
}

containerd_config() {
  local systemd_cgroup=true restrict=false runtime=runc
  if command -v crun >/dev/null; then runtime=crun; fi # in the guest
  if [ "$(cgroup_driver)" = cgroupfs ]; then systemd_cgroup=false; fi
  # without CAP_SYS_RESOURCE nothing may lower its OOM score
  if ! may_sys_resource; then restrict=true; fi
  keep /etc/containerd/config.toml
  write 0644 /etc/containerd/config.toml <<EOF || true
version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE"
  restrict_oom_score_adj = $restrict
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$certs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = $systemd_cgroup
      BinaryName = "$runtime"
EOF
  enable containerd
  follow containerd /etc/containerd/config.toml
  wait_for 60 "containerd to answer" ctr version
}

may_sys_resource() { (($((16#$(awk '/CapBnd/ {print $2}' /proc/self/status))) >> 24 & 1)); }

cgroup_driver() { # the systemd driver where systemd owns the whole tree: cgroup v2 on a real machine
  if is_container || [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ]; then echo cgroupfs; else echo systemd; fi
}

# Kubernetes' binaries come as one image from the private registry.
bundle() {
  local stamp=/usr/local/lib/spdk-k8s/bundle root=$STATE/unpacked file
  if [ "$(cat "$stamp" 2>/dev/null)" = "$BUNDLE" ]; then return; fi
  say "installing Kubernetes from ${BUNDLE%%@*}"
  unpack "$BUNDLE" "$root"
  while read -r file; do
    [ ! -f "$stamp" ] || rm -f "$file" # an earlier bundle's, nobody else's
    keep "$file"
    printf '%s\n' "$file"
  done < <(find "$root" ! -type d -printf '/%P\n') >>"$STATE/bundle"
  # Never through an owner's link. Files only: tar closes a folder that it extracts to all others until it is done, and
  # / was closed to every service that does not run as root.
  find "$root" ! -type d -printf '%P\0' | tar -C "$root" --null -T - -c | tar -C / -x
  forget "$BUNDLE" "$root"
  systemctl daemon-reload
  write 0644 "$stamp" <<<"$BUNDLE" || true
}

# kubelet's settings that depend on the machine, as kubeadm's patch for this node.
kubelet_config() {
  {
    printf 'cgroupDriver: %s\nsyncFrequency: %s\nresolvConf: %s\n' "$(cgroup_driver)" "$SYNC" "$(resolv_conf)"
    if [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ]; then printf 'failCgroupV1: false\n'; fi
    if is_container; then
      # swap, disk and OOM scores are the outer machine's business
      printf 'failSwapOn: false\nimageGCHighThresholdPercent: 100\n'
      printf 'evictionHard: {memory.available: 100Mi, nodefs.available: 1%%, imagefs.available: 1%%, nodefs.inodesFree: 1%%}\n'
    fi
  } | write 0644 "$patches/kubeletconfiguration+merge.yaml" || true
  # flags, not the config: kubelet's config is written once, by kubeadm join
  write 0644 /etc/default/kubelet <<<"KUBELET_EXTRA_ARGS=--node-ip=$NODE_IP${RESERVED_CPUS:+ --reserved-cpus=$RESERVED_CPUS}" || true
  # where there are none, kubelet looks for them every second, and logs it
  install -d /etc/kubernetes/manifests
  enable kubelet
  if older kubelet /etc/default/kubelet; then systemctl try-restart kubelet; fi
}

# The file that kubelet copies into pods, which cannot reach a resolver on the node's loopback address. It is always said:
# kubeadm copies what it finds on the control plane's machine to all nodes, and the file is systemd-resolved's on some only.
resolv_conf() {
  if is_container && grep -qs 'nameserver 127.0.0.11' /etc/resolv.conf; then
    echo /etc/kubernetes/resolv.conf # made by resolver
  elif grep -qsE '^nameserver 127\.0\.0\.5[34]' /etc/resolv.conf && [ -e /run/systemd/resolve/resolv.conf ]; then
    echo /run/systemd/resolve/resolv.conf
  else
    echo /etc/resolv.conf
  fi
}

# Docker's resolver listens on the container's loopback address, which pods cannot reach: they ask the node, and nft
# rules pass the question on. The resolver's port is new at each start of the container, so the rules are made at boot.
resolver() {
  if grep -qs 'nameserver 127.0.0.11' /etc/resolv.conf; then
    write 0644 /etc/kubernetes/resolv.conf <<<"nameserver $NODE_IP" || true
    write 0755 /usr/local/lib/spdk-k8s/resolver <<EOF || true
port() { nft list chain ip nat DOCKER_OUTPUT 2>/dev/null | sed -n "s/.*\$1 dport 53.*dnat to 127.0.0.11:\([0-9]*\).*/\1/p"; }
sysctl -qw net.ipv4.conf.all.route_localnet=1
nft -f - <<RULES
table ip spdk-k8s-dns
delete table ip spdk-k8s-dns
table ip spdk-k8s-dns {
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr $NODE_IP udp dport 53 dnat to 127.0.0.11:\$(port udp)
    ip daddr $NODE_IP tcp dport 53 dnat to 127.0.0.11:\$(port tcp)
  }
}
RULES
EOF
  else
    write 0755 /usr/local/lib/spdk-k8s/resolver </dev/null || true
    rm -f /etc/kubernetes/resolv.conf
  fi
}

cni() {
  resolver
  # containerd makes this folder as it starts, and watches that one: a folder made later it would never look into
  if [ ! -d /etc/cni/net.d ]; then
    systemctl restart containerd
    wait_for 30 "containerd to make /etc/cni/net.d" test -d /etc/cni/net.d
  fi
  write 0644 /etc/cni/net.d/10-spdk-k8s.conflist <<<"$CNI_CONFIG" || true
  # routes to the other nodes' pods, made at boot too; those to nodes that are no more go
  routed 2>/dev/null </usr/local/lib/spdk-k8s/routes | grep -vxFf <(routed <<<"$ROUTES") | xargs -rn1 ip route del 2>/dev/null || true
  write 0755 /usr/local/lib/spdk-k8s/routes <<<"$ROUTES" || true
  write 0644 /etc/systemd/system/spdk-k8s-routes.service <<'EOF' || true
[Unit]
Description=Routes to the other nodes' pods
Wants=network-online.target
After=network-online.target spdk-k8s-vm-bridge.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /usr/local/lib/spdk-k8s/routes
ExecStart=/bin/sh /usr/local/lib/spdk-k8s/resolver
[Install]
WantedBy=multi-user.target
EOF
  units_changed spdk-k8s-routes
  enable spdk-k8s-routes
  systemctl restart spdk-k8s-routes
}

routed() { awk '/^ip route replace/ {print $4}'; }

down() {
  systemctl disable --now kubelet spdk-k8s-routes 2>/dev/null || true
  remains
  unmount "$STATE/unpacked"
  network_down
  local file
  while read -r file; do give_back "$file" || true; done < <(cat "$STATE/bundle" 2>/dev/null)
  # the folders of CNI may be others' too: only this network's files go, and folders that are empty then
  rm -rf /etc/cni/net.d/10-spdk-k8s.conflist /var/lib/cni/networks/spdk-k8s /var/lib/cni/results/{spdk-k8s,cni-loopback}-*
  rmdir /opt/cni/bin /opt/cni /var/lib/cni/{networks,results,} 2>/dev/null || true
  rm -rf "${certs:?}/$REGISTRY" /etc/kubernetes /var/lib/kubelet /usr/local/lib/spdk-k8s/{bundle,routes,resolver} \
    /usr/libexec/kubernetes /etc/default/kubelet \
    /etc/systemd/system/spdk-k8s-routes.service /etc/modules-load.d/spdk-k8s.conf /etc/sysctl.d/90-spdk-k8s.conf \
    /var/log/pods /var/log/containers /run/spdk-k8s # the last one is the vhost pod's
  rmdir /usr/local/lib/spdk-k8s 2>/dev/null || true # a VM's tools may be there yet
  rmdir /usr/lib/modules 2>/dev/null || true # made for kube-proxy where the kernel has none
  systemctl daemon-reload
  if grep -qsx containerd "$STATE/packages" && ! others_use_containerd; then
    systemctl disable --now containerd 2>/dev/null || true
    unmount /run/containerd
    rm -rf /var/lib/containerd /run/containerd /opt/containerd /etc/containerd
    rmdir /etc/cni/net.d /etc/cni 2>/dev/null || true
  else
    rmdir --ignore-fail-on-non-empty "$certs" 2>/dev/null || true
    if give_back /etc/containerd/config.toml; then systemctl try-restart containerd 2>/dev/null || true; fi
  fi
  [ ! -f "$STATE/sysctl" ] || sysctl -q -p "$STATE/sysctl" >/dev/null 2>&1 || true
}

# Whether a package that was installed since needs containerd (such as docker.io), or somebody else's images or containers
# are in it. The steps' own images are in the namespaces k8s.io and, until they are unpacked, default.
others_use_containerd() {
  local name
  if sort -u "$STATE/packages" | xargs dpkg --simulate --purge 2>&1 | grep -q 'prevent removal of containerd:'; then return; fi
  for name in $(ctr namespaces list -q 2>/dev/null); do
    [ "$name" != k8s.io ] || continue
    # shellcheck disable=SC2143 # grep -q would end ctr half-way, and that failure would count
    if [ -n "$({ ctr -n "$name" images list -q && ctr -n "$name" containers list -q; } | grep -v "^$REGISTRY/")" ]; then return; fi
  done
  return 1
}

# unmount FOLDER   and everything below it; kubelet mounts its own folder where the root is not shared
unmount() { awk -v folder="$1" '$2 == folder || index($2, folder "/") == 1 {print $2}' /proc/mounts | sort -r | xargs -rn1 umount -l || true; }

# Removes what a `kubeadm reset` that failed has left.
remains() {
  local name
  if systemctl is-active --quiet containerd; then
    for name in $(ctr -n k8s.io tasks list -q); do ctr -n k8s.io tasks rm -f "$name" >/dev/null 2>&1 || true; done
    for name in $(ctr -n k8s.io containers list -q); do ctr -n k8s.io containers rm "$name" >/dev/null 2>&1 || true; done
    for name in $(ctr -n k8s.io images list -q); do ctr -n k8s.io images rm "$name" >/dev/null 2>&1 || true; done
  fi
  unmount /var/lib/kubelet
  # of this network's pods only, as the CNI plugins noted them
  { grep -ohsE '/cni-[0-9a-f-]+' /var/lib/cni/results/spdk-k8s-* || true; } | sort -u | while read -r name; do
    ip netns del "${name#/}" 2>/dev/null || true
  done
  if [ -d /run/netns ] && [ -z "$(ls -A /run/netns)" ]; then
    umount -l /run/netns 2>/dev/null || true
    rmdir /run/netns 2>/dev/null || true
  fi
}

# Removes links, routes and rules of the pods' network: this program's, kubelet's, kube-proxy's and the CNI plugins'.
network_down() {
  local table chain family command rules
  routed 2>/dev/null </usr/local/lib/spdk-k8s/routes | xargs -rn1 ip route del 2>/dev/null || true
  ip link del cni0 2>/dev/null || true
  for table in 'ip spdk-k8s' 'ip spdk-k8s-dns' 'ip kube-proxy' 'ip6 kube-proxy'; do
    # shellcheck disable=SC2086 # family and name
    nft delete table $table 2>/dev/null || true
  done
  for command in iptables ip6tables; do
    for table in filter nat mangle; do
      # those of CNI (CNI-…) are other networks': this one masquerades by nftables, and its pods have no host ports
      { $command -t $table -S 2>/dev/null || true; } | sed -nE '/ -j KUBE-/ s/^-A/-D/p' | xargs -rL1 $command -t $table || true
      chain=$({ $command -t $table -S 2>/dev/null || true; } | awk '$1 == "-N" && $2 ~ /^KUBE-/ {print $2}')
      xargs -rn1 $command -t $table -F <<<"$chain" || true
      xargs -rn1 $command -t $table -X <<<"$chain" || true
    done
  done
  # tables that were not there before, and that nobody has a rule in
  { nft list tables 2>/dev/null || true; } | while read -r _ family table; do
    case $table in filter | nat | mangle) ;; *) continue ;; esac
    if grep -qsx "table $family $table" "$STATE/nft-tables"; then continue; fi
    rules=$(nft list table "$family" "$table" | grep -vE '^(table|\s+chain|\s+type|\s*\}|\s*$)') || true
    [ -z "$rules" ] || continue
    nft delete table "$family" "$table" || true
  done
}
