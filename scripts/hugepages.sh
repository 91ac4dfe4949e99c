# shellcheck shell=bash
# Reserves hugepages for the vhost target and the VM, beside those that others on this machine have; before kubelet
# starts, because it counts them then.
# in: HUGEPAGES ("SIZE=COUNT …", SIZE 2Mi or 1Gi)
kept=$STATE/hugepages # "SIZE=COUNT", ours so far
pages=/sys/kernel/mm/hugepages

step() {
  local pair changed=
  if [ "$1" = down ]; then HUGEPAGES=; fi
  # what is wanted no more goes first: it makes room
  while read -r pair; do
    [[ " $HUGEPAGES " == *" $pair "* ]] || { release "$pair" && changed=1; }
  done < <(cat "$kept" 2>/dev/null)
  for pair in $HUGEPAGES; do
    grep -qsx "$pair" "$kept" || { reserve "$pair" && changed=1; }
  done
  if [ "$1" = down ]; then
    systemctl disable --quiet spdk-k8s-hugepages 2>/dev/null || true
    rm -f "$kept" /etc/systemd/system/spdk-k8s-hugepages.service
    return
  fi
  at_boot
  if [ -n "$changed" ] && systemctl is-active --quiet kubelet; then systemctl restart kubelet; fi
}

folder() {
  case $1 in
  2Mi) echo $pages/hugepages-2048kB ;;
  1Gi) echo $pages/hugepages-1048576kB ;;
  esac
}

# more SIZE NUMBER   NUMBER may be negative; prints how many the kernel really added
more() {
  local dir before
  dir=$(folder "$1")
  before=$(cat "$dir/nr_hugepages")
  echo $((before + $2)) >"$dir/nr_hugepages"
  echo $(($(cat "$dir/nr_hugepages") - before))
}

reserve() {
  local size=${1%=*} count=${1#*=} dir got available mib=2
  [ "$size" = 2Mi ] || mib=1024
  dir=$(folder "$size")
  [ -w "$dir/nr_hugepages" ] || fail "hugepages of $size: $(hostname) has none; mend: pulumi config set --path vhost.hugepageSize 2Mi (or none)"
  available=$(awk '/^MemAvailable:/ {print int($2 / 1024)}' /proc/meminfo)
  if ((available < count * mib)); then
    got=0 # and nothing is tried: the kernel would take memory from all others
  else
    got=$(more "$size" "$count")
  fi
  if ((got < count)); then
    more "$size" "-$got" >/dev/null
    fail "hugepages of $size: $count are wanted beside the $(cat "$dir/nr_hugepages") that others have, and $(hostname) can give $got of its $available MiB of free memory;" \
      "mend: give it more free memory, or reserve them at boot (hugepagesz=${size%i} hugepages=…), or make vhost.memoryMib smaller"
  fi
  install -d "$STATE"
  echo "$1" >>"$kept"
  say "reserved $count hugepages of $size"
}

release() {
  more "${1%=*}" "-${1#*=}" >/dev/null
  sed -i "/^$1\$/d" "$kept"
  say "released ${1#*=} hugepages of ${1%=*}"
}

at_boot() {
  local pair
  {
    printf '[Unit]\nDescription=Hugepages of the vhost target and the worker VM\nBefore=kubelet.service spdk-k8s-vm.service\n'
    printf '[Service]\nType=oneshot\nRemainAfterExit=yes\n'
    for pair in $HUGEPAGES; do
      # shellcheck disable=SC2016 # for the unit's shell
      printf 'ExecStart=/bin/sh -c "[ $$(cat %s/free_hugepages) -ge %s ] || echo %s >%s/nr_hugepages"\n' \
        "$(folder "${pair%=*}")" "${pair#*=}" "${pair#*=}" "$(folder "${pair%=*}")"
    done
    printf '[Install]\nWantedBy=multi-user.target\n'
  } | write 0644 /etc/systemd/system/spdk-k8s-hugepages.service && systemctl daemon-reload
  enable spdk-k8s-hugepages
}
