/**
 * Runs the tests: every file in a process of its own, in passes (both data paths, every CRIU that was fetched, none). A file
 * that hangs, dies or runs no test has failed. `npm test -- wire` runs what has `wire` in its name, `npm test -- --all` everything, as
 * no word does. Last: `N passed, N failed`.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { type Task, tasks } from '../test/support/passes.ts'

const root = dirname(import.meta.dirname)
const LIMIT_MS = 10 * 60_000

let [passed, failed] = [0, 0]

async function runFile({ file, pass, env, limitMs = LIMIT_MS }: Task): Promise<void> {
  const path = join(root, 'test', file)
  // Some tests look at what is left in the directory for temporary files: each file has its own.
  const temporary = mkdtempSync(join(tmpdir(), 't-'))
  chmodSync(temporary, 0o1777)
  const begun = performance.now()
  const how = { cwd: root, env: { ...process.env, ...env, TMPDIR: temporary } }
  const child = spawn(process.execPath, ['--import', 'tsx', path], { ...how, stdio: ['ignore', 'pipe', 'inherit'] })
  const timer = setTimeout(() => child.kill('SIGKILL'), limitMs)
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text))
  const [code] = (await once(child, 'close')) as [number | null]
  clearTimeout(timer)
  rmSync(temporary, { recursive: true, force: true })
  const count = (word: string): number => Number(new RegExp(`${word}:\\s+(\\d+)`).exec(output)?.[1] ?? 0)
  const [total, good] = [count('Total'), count('Passed')]
  const skipped = output.match(/^skipped: .*$/gm) ?? []
  // A file in which everything is skipped, with its reason, is in order; one that says nothing is not.
  const lost = total === 0 && skipped.length === 0
  const seconds = Math.round((performance.now() - begun) / 1000)
  const bad = Math.max(total - good, code === 0 && !lost ? 0 : 1)
  passed += good
  failed += bad
  console.log(`${bad === 0 ? 'ok  ' : 'FAIL'} ${relative(root, path)}, ${pass} (${good} of ${total}, ${seconds} s)`)
  for (const line of output.match(/^(skipped|figures): .*$/gm) ?? []) console.log(`     ${line}`)
  if (bad > 0) console.log(output, code === null ? 'killed: it took too long' : `exit code ${code}`)
}

const queue = tasks(process.argv.slice(2))
const running = new Set<string>()
/** Takes the next file that does not run already: some want a port, or a directory, that there is once. */
async function work(): Promise<void> {
  const task = queue.find(({ file }) => !running.has(file))
  if (task === undefined) return
  queue.splice(queue.indexOf(task), 1)
  running.add(task.file)
  await runFile(task)
  running.delete(task.file)
  return work()
}
await Promise.all([work(), work()])
console.log(`\n${passed} passed, ${failed} failed`)
process.exitCode = failed === 0 && passed > 0 ? 0 : 1
