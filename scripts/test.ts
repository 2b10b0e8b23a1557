/**
 * Runs the tests: every file in a process of its own, in passes (both data paths, every CRIU that was fetched, none). A file
 * that hangs, dies or runs no test has failed. `npm test -- wire` runs what has `wire` in its name. Last: `N passed, N failed`.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'

const root = dirname(import.meta.dirname)
const wanted = process.argv.slice(2)
const LIMIT_MS = 10 * 60_000

const criu = (suite: string): string => join(root, '.criu', suite, 'criu')
const live = /^criu\/(?!faults)/
const withoutSplice = /^(stream|role|scripts)\/(?!soak|daemon|build|flatten|bench|connections)/
const passes = [
  { name: 'everything, with the newest CRIU', files: /./, env: {} },
  { name: 'no splice', files: withoutSplice, env: { FERRY_NO_SPLICE: '1' } },
  { name: 'no splice, CRIU 4.2', files: live, env: { FERRY_NO_SPLICE: '1', FERRY_CRIU: criu('sid') } },
  { name: 'CRIU 4.2', files: /^criu\/(handover|loads|recipes)/, env: { FERRY_CRIU: criu('sid') } },
  { name: 'CRIU 4.1, no sockets', files: live, env: { FERRY_CRIU: criu('trixie') } },
  { name: 'no CRIU', files: /^(criu|scripts\/(pipe|proxy-cache|usage))/, env: { FERRY_CRIU: 'none' } },
]

const files = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.test.ts'))
  .sort()
const isWanted = (file: string): boolean => wanted.some((word) => file.includes(word))
let [passed, failed] = [0, 0]

async function runFile(file: string, env: Record<string, string>): Promise<void> {
  const path = join(root, 'test', file)
  // Some tests look at what is left in the directory for temporary files: each file has its own.
  const temporary = mkdtempSync(join(tmpdir(), 't-'))
  chmodSync(temporary, 0o1777)
  const begun = performance.now()
  const how = { cwd: root, env: { ...process.env, ...env, TMPDIR: temporary } }
  const child = spawn(process.execPath, ['--import', 'tsx', path], { ...how, stdio: ['ignore', 'pipe', 'inherit'] })
  const timer = setTimeout(() => child.kill('SIGKILL'), LIMIT_MS)
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
  console.log(`${bad === 0 ? 'ok  ' : 'FAIL'} ${relative(root, path)} (${good} of ${total}, ${seconds} s)`)
  for (const line of skipped) console.log(`     ${line}`)
  if (bad > 0) console.log(output, code === null ? 'killed: it took too long' : `exit code ${code}`)
}

/** The faults mostly wait for time-outs: they run aside, and so do others, for both to take about as long. */
const aside = /faults|soak|connections|compress|flatten|loads|recipes/
async function inTurn(chosen: readonly string[], which: boolean, env: Record<string, string>): Promise<void> {
  for (const file of chosen) if (aside.test(file) === which) await runFile(file, env)
}
for (const pass of passes) {
  const program = 'FERRY_CRIU' in pass.env ? pass.env.FERRY_CRIU : undefined
  console.log(`\n# ${pass.name}`)
  if (program !== undefined && program !== 'none' && !existsSync(program)) {
    console.log(`skipped: ${relative(root, program)} could not be fetched`)
    continue
  }
  const chosen = files.filter((file) => pass.files.test(file) && (wanted.length === 0 || isWanted(file)))
  await Promise.all([inTurn(chosen, true, pass.env), inTurn(chosen, false, pass.env)])
}
console.log(`\n${passed} passed, ${failed} failed`)
process.exitCode = failed === 0 && passed > 0 ? 0 : 1
