# The steps of test/tools/gpu-check.sh, which sources this file: the table of limits, what each step runs, and what the
# summary says of its output.
#
# A step runs as `gpu-check.sh --step NAME`, with these variables:
#   CHECK_KIT           the folder with Node and the programs: the unpacked archive, or the checkout
#   CHECK_ARCHIVE       the archive, or empty
#   CHECK_WORK          a folder for temporary files
#   CHECK_DEVICE        cuda, or emulated in a rehearsal
#   CHECK_REHEARSAL     not empty in a rehearsal
#   CHECK_DRIVER        gpu_driver
#   CHECK_DEVICE_CHECK  device_check
#   CHECK_LIBRARIES     a folder of libraries that the programs need, or empty
#   CHECK_STEP_SECONDS  the step's limit

# Steps and their limits in seconds, in the order in which they run. With what gpu-check.sh adds for the end of each
# they make up the limit of the whole run.
STEPS='machine 6
unpack 18
device_layer 12
correctness 52
timings 52
limits 34
fixtures 20
models 38
jest 59
memcheck 66
racecheck 26
synccheck 22
ncu 42'

SKIP_STATUS=77      # of a step that cannot run here
INCOMPLETE_STATUS=4 # of gpu_driver if the time did not suffice for all cases

grep() { command grep -a "$@"; } # what a program prints need not be text
has() { command -v "$1" >/dev/null 2>&1; }

skip() {
  echo "SKIPPED: $*"
  exit $SKIP_STATUS
}

need() { has "$1" || skip "${2:-no $1 on PATH}"; }
need_file() { [ -e "$1" ] || skip "${1#"$CHECK_KIT"/} is not built"; }

# Runs a program of the archive. It may need the archive's libraries; other programs must not see them.
# The machine's own libraries come first: the driver's may be in no other place.
own() {
  local machine=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/nvidia/lib64
  ${CHECK_LIBRARIES:+env LD_LIBRARY_PATH="$machine:$CHECK_LIBRARIES"} "$@"
}

# The last seconds of a step belong to the program, which then ends by itself.
driver_seconds() { echo $((CHECK_STEP_SECONDS > 10 ? CHECK_STEP_SECONDS - 4 : CHECK_STEP_SECONDS - 1)); }

step_machine() {
  local fields=name,memory.total,driver_version,compute_cap,clocks.sm,clocks.max.sm,clocks.mem,power.limit
  nvidia-smi --query-gpu=$fields,ecc.mode.current,temperature.gpu --format=csv,noheader
  local status=$?
  echo "$(uname -srm); $(nproc) CPUs; $(awk '/MemTotal/ { printf "%d GiB", $2 / 1048576 }' /proc/meminfo)"
  grep -m1 'model name' /proc/cpuinfo
  local tool
  for tool in nvcc ncu compute-sanitizer python3 g++ cmake node; do
    if has $tool; then
      echo "$tool: $(timeout 3 $tool --version 2>&1 | grep -E '[0-9]+\.[0-9]+' | tail -1)"
    else
      echo "$tool: not on PATH"
    fi &
  done
  wait
  return $status
}

step_unpack() {
  [ -n "$CHECK_ARCHIVE" ] || skip "nothing to unpack: takes what is in $CHECK_KIT"
  echo "$(stat -c %s "$CHECK_ARCHIVE") bytes in $CHECK_ARCHIVE"
  if has xz; then
    tar -xJf "$CHECK_ARCHIVE" -C "$CHECK_KIT" || exit 1
  else # Python has its own decompressor
    need python3 'neither xz nor python3 on PATH'
    local program='import sys, tarfile; tarfile.open(sys.argv[1], "r:xz").extractall(sys.argv[2])'
    python3 -c "$program" "$CHECK_ARCHIVE" "$CHECK_KIT" || exit 1
  fi
  echo "archive of commit $(cat "$CHECK_KIT/commit")"
  # The checkpoints are tracked files, so they are not in the archive.
  local path
  for path in models test/fixtures; do
    if [ -e "$root/$path" ] && [ ! -e "$CHECK_KIT/$path" ]; then ln -s "$root/$path" "$CHECK_KIT/$path"; fi
  done
  cd "$root" || exit 1
  sha256sum --check --quiet "$CHECK_KIT/sources.sha256" 2>/dev/null |
    sed 's/: FAILED.*//; s/^/differs from the archive: /'
}

step_rebuild() {
  need nvcc
  need cmake
  local generator=()
  if has ninja; then generator=(-G Ninja); fi
  local build=$CHECK_WORK/rebuild json=
  if [ -d "$CHECK_KIT/include" ]; then json=$CHECK_KIT/include; fi
  # CMakeLists.txt asks Node for the headers of Node-API, which are in the archive.
  PATH="$CHECK_KIT/bin:$PATH" NODE_PATH="$CHECK_KIT/node_modules" own \
    cmake -S "$root" -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DDIFFQKV_CUDA=ON -DDIFFQKV_ONEDNN=OFF \
    ${json:+-DNLOHMANN_JSON_INCLUDE_DIR="$json"} || exit 1
  cmake --build "$build" --parallel "$(nproc)" --target addon gpu_driver device_check || exit 1
  mkdir -p "$CHECK_KIT/build/Release" "$CHECK_KIT/build-cmake"
  cp "$build/diffqkv.node" "$CHECK_KIT/build/Release/" || exit 1
  cp "$build/gpu_driver" "$build/device_check" "$CHECK_KIT/build-cmake/"
}

step_build_driver() {
  [ -z "$CHECK_REHEARSAL" ] || skip 'a rehearsal has its own driver'
  need nvcc
  need_file "$root/test/gpu/build.sh"
  mkdir -p "$(dirname "$CHECK_DRIVER")"
  bash "$root/test/gpu/build.sh" "$CHECK_DRIVER" && "$CHECK_DRIVER" list >/dev/null
}

step_device_layer() {
  need_file "$CHECK_DEVICE_CHECK"
  own "$CHECK_DEVICE_CHECK"
}

step_correctness() {
  need_file "$CHECK_DRIVER"
  own "$CHECK_DRIVER" correctness ${CHECK_REHEARSAL:+--shapes small} --seconds "$(driver_seconds)"
}

step_timings() {
  need_file "$CHECK_DRIVER"
  own "$CHECK_DRIVER" timings ${CHECK_REHEARSAL:+--shapes small} --seconds "$(driver_seconds)"
}

step_limits() {
  need python3
  python3 -c 'import importlib.util as i; exit(i.find_spec("torch") is None)' || skip 'python3 has no torch'
  PYTHONUNBUFFERED=1 \
    python3 "$root/test/gpu/limits.py" ${CHECK_REHEARSAL:+--device cpu} --seconds $((CHECK_STEP_SECONDS - 6))
}

node_here() { PATH="$CHECK_KIT/bin:$PATH" DIFFQKV_TEST_DEVICES="$CHECK_DEVICE" OMP_WAIT_POLICY=passive own node "$@"; }

need_node() { PATH="$CHECK_KIT/bin:$PATH" need node; }

jest() { (cd "$CHECK_KIT" && node_here node_modules/jest/bin/jest.js --cacheDirectory="$CHECK_WORK/jest" "$@"); }

step_fixtures() {
  need_node
  [ -e "$CHECK_KIT/test/fixtures" ] || skip 'the archive has no checkpoints: run the script of a checkout'
  local only=()
  if [ -n "$CHECK_REHEARSAL" ]; then only=(--testNamePattern 'llama-gqa-f32 .*logits after prefill'); fi
  jest --runInBand --verbose --testPathPatterns '/test/model/fixtures\.test\.[jt]s$' "${only[@]}"
}

step_models() {
  need_node
  need_file "$CHECK_KIT/dist/lib/index.js"
  local status=0 name
  for name in sigma-10b sigma-1.5b; do
    node_here "$CHECK_KIT/test/gpu/models.cjs" "$name" "$CHECK_DEVICE" || status=$?
  done
  return $status
}

step_jest() {
  need_node
  local pattern ignored=fixtures # which has a step of its own
  pattern=$(node_here "$CHECK_KIT/test/tools/suites.mjs") || exit 1
  if [ -n "$CHECK_REHEARSAL" ]; then pattern='/test/operators/(rope|gated_activation|embed)\.test\.'; fi
  if [ ! -e "$CHECK_KIT/test/fixtures" ]; then
    ignored=$(cd "$CHECK_KIT/test" && grep -l "/fixtures['\"]" -- */*.test.[jt]s | sed 's/.*\///; s/\..*//' | paste -sd '|')
    echo "left out, as they need checkpoints: $ignored"
  fi
  ignored="/test/\w+/($ignored)\.test\."
  jest --maxWorkers=8 --testPathPatterns "$pattern" --testPathIgnorePatterns "$ignored" /node_modules/
}

# TOOL SUBSTRING: compute-sanitizer on the driver's small cases.
sanitize() {
  need compute-sanitizer
  need_file "$CHECK_DRIVER"
  own compute-sanitizer --tool "$1" --error-exitcode 9 --target-processes all \
    "$CHECK_DRIVER" correctness --shapes small --in-process --no-emulation \
    --seconds $((CHECK_STEP_SECONDS * 7 / 10)) ${2:+--only "$2"} # the tool takes its time before and after
}

step_memcheck() { sanitize memcheck ''; }
step_racecheck() { sanitize racecheck attention; }
step_synccheck() { sanitize synccheck attention; }

# A kernel; the driver's case that it is taken from; the case of a rehearsal.
NCU_CASES='attention_decode_kernel|decode attention 32/4/16 x 128, 32k, batch 1|decode attention
attention_prefill_kernel|prefill attention 32/4/16 x 128, 8k|prefill attention
gemv_tensor|Sigma-10B: FFN, 1 token|FFN, 1 token
gemm_kernel|Sigma-10B: FFN, 512 tokens|FFN, 16 tokens
sample_kernel|sampled token, top-k 40, top-p 0.9|sampled token, top-k 40'

NCU_METRICS='gpu__time_duration.sum
sm__cycles_elapsed.max
sm__throughput.avg.pct_of_peak_sustained_elapsed
dram__bytes_read.sum
dram__bytes_write.sum
dram__throughput.avg.pct_of_peak_sustained_elapsed
lts__t_bytes.sum
sm__warps_active.avg.pct_of_peak_sustained_active
smsp__inst_executed.sum
smsp__issue_active.avg.pct_of_peak_sustained_active
smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio
sm__inst_executed_pipe_tensor.sum
sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active
l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum
launch__registers_per_thread
launch__shared_mem_per_block_dynamic
launch__grid_size
launch__waves_per_multiprocessor'

# KERNEL CASE SECONDS: runs ncu on the fourth launch of KERNEL in CASE. Status 0 if ncu.csv has a row.
profile() {
  : >"$CHECK_WORK/ncu.csv"
  # ncu ends the driver as soon as it has its launch, so the driver's status means nothing.
  own timeout -k 1 "$3" \
    ncu --clock-control none --csv --page raw --metrics "${NCU_METRICS//$'\n'/,}" --log-file "$CHECK_WORK/ncu.csv" \
    --kernel-name "regex:$1" --launch-skip 3 --launch-count 1 --kill yes \
    "$CHECK_DRIVER" timings ${CHECK_REHEARSAL:+--shapes small} --in-process --only "$2" \
    </dev/null >"$CHECK_WORK/ncu.out" 2>&1
  grep -qE '^"[0-9]+",' "$CHECK_WORK/ncu.csv"
}

step_ncu() {
  need ncu
  need_file "$CHECK_DRIVER"
  local status=0 kernel case small_case left seconds
  left=$(wc -l <<<"$NCU_CASES")
  while IFS='|' read -r kernel case small_case; do
    if [ -n "$CHECK_REHEARSAL" ]; then case=$small_case; fi
    seconds=$(((CHECK_STEP_SECONDS - SECONDS) / left - 1))
    if ! profile "$kernel" "$case" "$seconds" && grep -qi 'metric' "$CHECK_WORK/ncu.csv" "$CHECK_WORK/ncu.out"; then
      echo "this ncu does not know all metrics: $(grep -hi -m1 'metric' "$CHECK_WORK/ncu.csv" "$CHECK_WORK/ncu.out")"
      NCU_METRICS=gpu__time_duration.sum
      profile "$kernel" "$case" "$seconds"
    fi
    cat "$CHECK_WORK/ncu.csv"
    if ! grep -qE '^"[0-9]+",' "$CHECK_WORK/ncu.csv"; then
      status=1
      echo "FAILED: ncu has nothing on $kernel ($case)"
      tail -5 "$CHECK_WORK/ncu.out"
    fi
    ((left--))
  done <<<"$NCU_CASES"
  return $status
}

step_break_hang() {
  trap '' TERM
  setsid sleep 600 & # holds the output open, in a session that `timeout` does not reach
  echo 'hangs, and ignores SIGTERM'
  while :; do sleep 1; done
}
step_break_crash() { kill -SEGV $$; }
step_break_fail() { return 1; }

# ---- What a step's output says: one line for the summary. Status 1 if the output does not show that the step did its work.

count() { grep -cE "$1" "$2"; }
joined() { paste -sd '|' | sed 's/|/; /g'; }

result_machine() { head -1 "$1"; }

result_unpack() {
  local line changed
  line=$(grep '^archive of' "$1")
  changed=$(sed -n 's/^differs from the archive: //p' "$1")
  if [ -n "$changed" ]; then line+="; $(wc -l <<<"$changed") sources differ from it, first $(head -1 <<<"$changed")"; fi
  echo "$line"
}

result_device_layer() {
  local line different
  line="$(count '"name"' "$1") wrappers"
  different=$(sed -nE 's/.*"name": "([^"]*)".*"different": [1-9].*/\1/p' "$1" | joined)
  echo "$line${different:+, different: $different}"
  grep -q '"name"' "$1"
}

# Of gpu_driver: how many cases ended how, and the first that are not ok.
result_driver() {
  local outcome number line='' wrong
  for outcome in ok FAILED TIMEOUT CRASHED SKIPPED; do
    number=$(count "^\{.*\"case\": .*\"outcome\": \"$outcome\"" "$1")
    if ((number > 0)); then line+="${line:+, }$number $outcome"; fi
  done
  wrong=$(sed -nE 's/^\{.*"case": "([^"]*)", "outcome": "(FAILED|TIMEOUT|CRASHED)".*/\1/p' "$1" | head -8 | joined)
  echo "${line:-no case ended}${wrong:+: $wrong}"
  grep -q '"outcome": "ok"' "$1"
}
result_correctness() { result_driver "$1"; }
result_timings() { result_driver "$1"; }

result_limits() {
  sed -nE 's/.*"limit": "([^"]*)", "value": ([^,]*), "unit": "([^"]*)".*"headline": true.*/\1 \2 \3/p' "$1" | joined
  grep -q '"value"' "$1"
}

result_models() {
  sed -nE 's/.*"model":"([^"]*)","what":"([^"]*)","value":([^,]*),"unit":"([^"]*)".*/\1 \2: \3 \4/p' "$1" | joined
  grep -q 'tokens/s' "$1"
}

result_jest() {
  local line failed
  line=$(sed -nE 's/^Tests: +//p' "$1" | tail -1)
  failed=$(sed -n 's/^FAIL //p' "$1" | sort -u | head -5 | joined)
  echo "${line:-not finished: $(count '^PASS ' "$1") files passed}${failed:+, failed: $failed}"
  grep -qE '^Tests: .*passed' "$1"
}
result_fixtures() { result_jest "$1"; }

result_memcheck() {
  sed -nE 's/^=+ ((ERROR|RACECHECK) SUMMARY.*)/\1/p' "$1" | tail -1
  grep -qE 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$1"
}
result_racecheck() { result_memcheck "$1"; }
result_synccheck() { result_memcheck "$1"; }

result_ncu() {
  echo "$(count '^"[0-9]+",' "$1") kernels"
  grep -qE '^"[0-9]+",' "$1"
}
