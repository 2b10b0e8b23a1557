/**
 * Runs the tests: every file in a process of its own, several at a time. `npm test` runs what a change breaks first,
 * `npm test -- --all` everything (both data paths, every CRIU that was fetched, none, two releases of Node.js), and
 * `npm test -- wire` what has `wire` in its name. A file that hangs, dies or runs no test has failed.
 *
 * A file that failed beside others is run once more, alone, and what both runs said is printed in full. It has failed
 * all the same, for a race in our code looks like that too; only those of `LOAD_DEPENDS` may pass alone. Last: `N
 * passed, N failed`.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { type Task, tasks } from '../test/support/passes.ts'

const root = dirname(import.meta.dirname)
/** Most files wait more than they compute; more at a time would make what is timed fail. */
const AT_A_TIME = Math.min(8, availableParallelism() + 1)
const SLOWEST = 10
const REASON_LINES = 12
/**
 * Files that a busy machine alone may fail. real-criu/loads dumps without the action script too, where CRIU kills the
 * tasks without waiting for the proxy. stream/compress has `auto` measure how fast a link is.
 */
const LOAD_DEPENDS = /^(real-criu\/loads|stream\/compress)\.test\.ts$/

interface Ran {
  output: string
  code: number | null
}

async function runFile({ file, env, node = process.execPath, limitMs }: Task): Promise<Ran> {
  // Some tests look at what is left in the directory for temporary files: each file has its own.
  const temporary = mkdtempSync(join(tmpdir(), 't-'))
  chmodSync(temporary, 0o1777)
  const child = spawn(node, ['--import', 'tsx', join(root, 'test', file)], {
    cwd: root,
    env: {
      ...process.env,
      ...env,
      TMPDIR: temporary,
      FERRY_BUILT: '1',
      FERRY_LOAD_NODE: process.execPath,
      PATH: `${dirname(node)}:${process.env.PATH}`,
    },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const timer = setTimeout(() => child.kill('SIGKILL'), limitMs)
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text))
  const [code] = (await once(child, 'close')) as [number | null]
  clearTimeout(timer)
  rmSync(temporary, { recursive: true, force: true })
  return { output, code }
}

interface Score {
  good: number
  bad: number
  total: number
}

/** A file in which everything is skipped, with its reason, is in order; one that says nothing is not. */
function scoreOf({ output, code }: Ran): Score {
  const count = (word: string): number => Number(new RegExp(`${word}:\\s+(\\d+)`).exec(output)?.[1] ?? 0)
  const [total, good] = [count('Total'), count('Passed')]
  const lost = total === 0 && !/^skipped: /m.test(output)
  return { good, total, bad: Math.max(total - good, code === 0 && !lost ? 0 : 1) }
}

const words = process.argv.slice(2)
const setup = ['--import', 'tsx', join(root, 'scripts', 'setup.ts'), words.length === 0 ? '--tests' : '--all']
spawnSync(process.execPath, setup, { cwd: root, stdio: 'inherit' })
// The commands that the tests start are built once: a start then takes a third of the time.
execFileSync('npm', ['run', '--silent', 'build'], { cwd: root, stdio: 'inherit' })
const queue = tasks(words)
const all = queue.length
const running = new Set<string>()
const slowest: { seconds: number; what: string }[] = []
/** What has failed, told once more at the end: the middle of a long output is what gets lost. */
const failures: string[] = []
const again: { task: Task; beside: Score }[] = []
let [passed, failed, done] = [0, 0, 0]

/** Runs a file and tells how it went; `where` gives what comes before its name. Returns what passed and failed. */
async function runAndTell(task: Task, where: () => string): Promise<Score> {
  const begun = performance.now()
  const ran = await runFile(task)
  const seconds = Math.round((performance.now() - begun) / 1000)
  const score = scoreOf(ran)
  const what = nameOf(task)
  slowest.push({ seconds, what })
  console.log(`${score.bad === 0 ? 'ok  ' : 'FAIL'} ${where()} ${what} (${score.good} of ${score.total}, ${seconds} s)`)
  for (const line of ran.output.match(/^(skipped|figures): .*$/gm) ?? []) console.log(`     ${line}`)
  if (score.bad > 0) {
    const end = ran.code === null ? 'killed: it took too long' : `exit code ${ran.code}`
    console.log(ran.output, end)
    failures.push(`${what}: ${end}${reasonsOf(ran.output)}`)
  }
  return score
}

function nameOf({ file, pass }: Task): string {
  return `test/${file}, ${pass}`
}

function count({ good, bad }: Score): void {
  passed += good
  failed += bad
}

/** The lines that uvu writes of what failed: the test, and the message below it. */
function reasonsOf(output: string): string {
  const lines = output.split('\n')
  const starts = lines.flatMap((line, index) => (/^\s*FAIL\s/.test(line) ? [index] : []))
  return starts
    .flatMap((start) => lines.slice(start, start + REASON_LINES))
    .map((line) => `\n  ${line}`)
    .join('')
}

/** Takes the next file that does not run already: some want a port, or a directory, that there is once. */
async function work(): Promise<void> {
  for (;;) {
    const task = queue.find(({ file }) => !running.has(file))
    if (task === undefined) return
    queue.splice(queue.indexOf(task), 1)
    running.add(task.file)
    const score = await runAndTell(task, () => `${++done}/${all}`)
    running.delete(task.file)
    if (score.bad > 0) again.push({ task, beside: score })
    else count(score)
  }
}

/** Runs what has failed beside others once more, one file at a time. Returns what passed then. */
async function runAgain(): Promise<string[]> {
  const unstable: string[] = []
  for (const { task, beside } of again) {
    const alone = await runAndTell(task, () => 'alone')
    count(LOAD_DEPENDS.test(task.file) ? alone : beside)
    if (alone.bad === 0) unstable.push(nameOf(task))
  }
  return unstable
}

const minutes = (seconds: number): string => `${Math.max(1, Math.round(seconds / 60))} min`
const expected = queue.reduce((sum, { seconds }) => sum + seconds, 0) / AT_A_TIME
const longest = Math.max(0, ...queue.map(({ seconds }) => seconds))
const passes = [...new Set(queue.map(({ pass }) => pass))]
console.log(
  `${all} test files, ${AT_A_TIME} at a time, about ${minutes(Math.max(expected, longest))}: ${passes.join('; ')}`,
)
if (words.length === 0) console.log('everything: npm test -- --all')

await Promise.all(Array.from({ length: AT_A_TIME }, work))
const unstable = await runAgain()

slowest.sort((one, other) => other.seconds - one.seconds)
console.log(
  `\nslowest: ${slowest
    .slice(0, SLOWEST)
    .map(({ seconds, what }) => `${what} ${seconds} s`)
    .join('; ')}`,
)
for (const failure of failures) console.log(`\nfailed: ${failure}`)
for (const what of unstable) console.log(`\nunstable: ${what}: it failed beside others and passed alone`)
console.log(`\n${passed} passed, ${failed} failed`)
process.exitCode = failed === 0 && passed > 0 ? 0 : 1
