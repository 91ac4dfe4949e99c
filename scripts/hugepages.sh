# shellcheck shell=bash
# Reserves hugepages for the vhost target and the VM; before kubelet starts, because it counts them then. A server's idle
# ones are taken first, the rest is added; only what was added is given back.
# in: HUGEPAGES ("SIZE=COUNT …", SIZE 2Mi or 1Gi)
kept=$STATE/hugepages      # for each size a line "SIZE HAD ADDED OTHERS": ours, of them added; those that others used before us
boot=$STATE/hugepages.boot # the boot of the machine since which that is so
boot_id=/proc/sys/kernel/random/boot_id

step() {
  local size wanted had added others changed=
  [ "$1" != down ] || HUGEPAGES=
  # what is noted of another boot is not there any more
  grep -qsxf "$boot_id" "$boot" || rm -f "$kept"
  # first more, then less: a host that cannot give more keeps what it has
  for size in 2Mi 1Gi; do
    recall "$size"
    ((wanted <= had)) || { grow "$size"; changed=1; }
  done
  for size in 2Mi 1Gi; do
    recall "$size"
    ((wanted >= had)) || { shrink "$size"; changed=1; }
  done
  if [ "$1" = down ]; then
    systemctl disable --quiet spdk-k8s-hugepages 2>/dev/null || true
    rm -f "$kept" "$boot" /etc/systemd/system/spdk-k8s-hugepages.service
    return
  fi
  at_boot
  if [ -n "$changed" ] && systemctl is-active --quiet kubelet; then systemctl restart kubelet; fi
}

# recall SIZE   sets wanted, had, added, others
recall() {
  local line
  wanted=0
  [[ " $HUGEPAGES " != *" $1="* ]] || wanted=${HUGEPAGES##*"$1="} wanted=${wanted%% *}
  line=$(grep -s "^$1 " "$kept") || line="$1 0 0"
  read -r _ had added others <<<"$line"
}

# note SIZE HAD ADDED OTHERS
note() {
  {
    grep -sv "^$1 " "$kept" || true
    [ "$2" = 0 ] || echo "$@"
  } | write 0644 "$kept" || true
  cat "$boot_id" >"$boot"
}

# more SIZE NUMBER   NUMBER may be negative; prints how many the kernel really added
more() {
  local dir before
  dir=$(hugepages_folder "$1")
  before=$(total "$dir")
  echo $((before + $2)) >"$dir/nr_hugepages"
  echo $(($(total "$dir") - before))
}
total() { echo $(($(cat "$1/nr_hugepages") - $(cat "$1/surplus_hugepages"))); } # surplus: given back, but still in use

grow() {
  local dir idle spare missing got=0 available
  dir=$(hugepages_folder "$1")
  [ -w "$dir/nr_hugepages" ] || fail "hugepages of $1: $(hostname) has none; mend: pulumi config set --path vhost.hugepageSize 2Mi (or none)"
  idle=$(idle_hugepages "$1")
  others=${others:-$(($(total "$dir") - idle))}
  spare=$(($(total "$dir") - others - had)) # of the idle ones, these are not ours already
  ((spare <= idle)) || spare=$idle
  missing=$((wanted - had - (spare > 0 ? spare : 0)))
  ((missing > 0)) || missing=0
  available=$(awk '/^MemAvailable:/ {print int($2 / 1024)}' /proc/meminfo)
  # else nothing is tried: the kernel would take memory from all others
  ((available < missing * $(hugepage_mib "$1"))) || got=$(more "$1" "$missing")
  if ((got < missing)); then
    more "$1" "-$got" >/dev/null
    fail "hugepages of $1: $missing are wanted beside the $(cat "$dir/nr_hugepages") that are there, and $(hostname) can give $got of its $available MiB of free memory;" \
      "mend: give it more free memory, $(is_container || echo "or reserve them at boot (hugepagesz=${1%i} hugepages=…), ")or make vhost.memoryMib or vm.memoryMib smaller"
  fi
  note "$1" "$wanted" $((added + missing)) "$others"
  say "reserved $((wanted - had)) hugepages of $1, $missing of them added"
}

shrink() {
  local less=$((had - wanted))
  ((less <= added)) || less=$added
  more "$1" "-$less" >/dev/null
  note "$1" "$wanted" $((added - less)) "$others"
  say "released $((had - wanted)) hugepages of $1, $less of them given back"
}

# Adds them again when the machine was restarted; at the restart of a container they are still there.
at_boot() {
  local size added
  {
    printf '[Unit]\nDescription=Hugepages of the vhost target and the worker VM\nBefore=kubelet.service spdk-k8s-vm.service\n'
    printf '[Service]\nType=oneshot\nRemainAfterExit=yes\n'
    printf 'ExecCondition=/bin/sh -c "! grep -qsxf %s %s"\n' "$boot_id" "$boot"
    while read -r size _ added _; do
      # shellcheck disable=SC2016 # for the unit's shell
      printf 'ExecStart=/bin/sh -c "cd %s; n=$$(cat nr_hugepages); all=$$((n + %s)); echo $$all >nr_hugepages; [ $$(cat nr_hugepages) = $$all ] || { echo $$n >nr_hugepages; false; }"\n' \
        "$(hugepages_folder "$size")" "$added"
    done <"$kept"
    printf 'ExecStartPost=/bin/cp %s %s\n' "$boot_id" "$boot"
    printf '[Install]\nWantedBy=multi-user.target\n'
  } | write 0644 /etc/systemd/system/spdk-k8s-hugepages.service && systemctl daemon-reload
  enable spdk-k8s-hugepages
}
