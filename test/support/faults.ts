/**
 * The fault matrix: plays a hand-over with one fault in it, and keeps what was seen as a row. The rows make
 * docs/reliability.md: `FERRY_RELIABILITY=write npm test -- faults`. Without that variable the columns that do not
 * depend on chance are compared with it.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { release } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'uvu'
import * as assert from 'uvu/assert'
import { type Load, patternLoad } from './loads.ts'
import { type Relay, relay, type Trouble } from './relay.ts'
import { eventually, type Running, root } from './run.ts'
import { copyOf, originalOf, type Stage, staged } from './stage.ts'

/** What was seen after a fault. */
export interface Row {
  fault: string
  original: string
  copy: string
  exit: string
  left: string[]
}

export interface Scene extends Stage {
  cacheRun: Running
  proxyRun: Running
  cachePort: string
  relay: Relay
}

export interface Plan {
  /** What is moved, if not a pattern of 8 MiB. */
  load?: Load
  cache?: string[]
  proxy?: string[]
  trouble?: Trouble
  dump?: string[]
  /** What happens meanwhile; the dump runs. */
  act?: (scene: Scene, dumping: Running) => Promise<void>
  /** Where the process must be afterwards. */
  end: 'stays' | 'moves' | 'held'
  /** What may lie there afterwards, by name. */
  leaves?: RegExp
  /** Before the daemons are stopped. */
  after?: (scene: Scene) => Promise<void>
}

export interface Matrix {
  /** Plays a hand-over until running, to a cache that restores, with one fault in it. */
  row(fault: string, plan: Plan): void
  /** Plays something else on a stage. */
  scene(fault: string, play: (stage: Stage) => Promise<Seen>, load?: Load): void
}

/** A row without its name, and the commands that it quotes. */
export interface Seen extends Omit<Row, 'fault'> {
  commands: Record<string, Running>
}

/** The rows that `npm test` plays; `npm test -- --all` plays all. */
const important: readonly string[] = [
  'no fault',
  'the link is cut before imageEnd and stays so',
  'the link is cut after ready',
  'the link is cut before the verdict and stays so: the copy is held until it is told by hand',
  'a bit flips in data',
  'the link is silent before the verdict',
  'criu dump is killed in the middle',
  'the dump fails when the target has agreed',
  'the proxy gets SIGKILL when the target is ready',
  'the cache gets SIGKILL while it holds, and another one is started',
  'the restore is killed',
]
const isQuick = process.env.FERRY_TESTS === 'quick'

const document = join(root, 'docs/reliability.md')
const load = patternLoad(8)

/** Of the proxy and the cache. */
export const timeout = ['--timeout', '4']

/** Nothing passes any more, on no link. */
export function stall(at: Trouble['at'], from: Trouble['from'] = 'source'): Trouble {
  return { at, from, what: 'stall', later: 'stall' }
}

/** Adds `rows`, and the comparison of one section of the document with them, to `test`. */
export function matrix(
  test: Test,
  { section, about, criu, version }: { section: string; about: string; criu: string; version: string },
  rows: (matrix: Matrix) => void,
): void {
  const table: string[] = []
  const compared: string[] = []
  let left = 0
  const scene: Matrix['scene'] = (fault, play, moved = load) => {
    if (isQuick && !important.includes(fault)) return void left++
    test(fault, () =>
      staged(criu, moved, async (stage) => {
        const { commands, ...seen } = await play(stage)
        const start = startOf({ fault, ...seen })
        compared.push(start)
        table.push(`${start} ${quote(commands)} |`)
      }),
    )
  }
  const row: Matrix['row'] = (fault, plan) => scene(fault, (stage) => handOver(stage, plan), plan.load)
  rows({ row, scene })
  if (left > 0) console.log(`skipped: ${left} rows of the fault matrix: npm test -- --all plays them`)
  test('the table in docs/reliability.md is what was seen', () => {
    if (process.env.FERRY_RELIABILITY === 'write') write(section, about, table, version)
    const lines = (sectionsOf(readFileSync(document, 'utf8')).get(section) ?? '').split('\n')
    for (const start of compared) {
      assert.ok(
        lines.some((line) => line.startsWith(start)),
        `not in docs/reliability.md: ${start}`,
      )
    }
    assert.is(lines.filter((line) => line.startsWith('| ')).length, compared.length + left + 1)
  })
}

async function handOver(stage: Stage, plan: Plan): Promise<Seen> {
  const { cache, port } = await stage.cache(...timeout, ...(plan.cache ?? ['--restore']))
  const between = await relay(port, plan.trouble)
  const proxy = await stage.proxy(between.port, '--until', 'running', ...timeout, ...(plan.proxy ?? []))
  const scene = { ...stage, cacheRun: cache, proxyRun: proxy, cachePort: port, relay: between }
  const dumping = stage.dump(...(plan.dump ?? []))
  try {
    await plan.act?.(scene, dumping)
    const dumped = await dumping.ended
    // First what is owed, for it may still change something.
    const owes = (): boolean => leftIn(stage).some((name) => name.endsWith('.owed'))
    if (plan.leaves?.test('x.owed') !== true) await eventually(() => !owes() || undefined, 'the verdict', 20_000)
    const where = await settled(stage, plan.end, () => `${proxy.stderr()}\n${cache.stderr()}\n${dumped.stderr}`)
    await plan.after?.(scene)
    await Promise.all([proxy.stop(), cache.stop()])
    const left = leftIn(stage)
    assert.equal(
      left.filter((name) => plan.leaves?.test(name) !== true),
      [],
      'nothing is left',
    )
    return { ...where, exit: `criu dump ${dumped.code}`, left, commands: { proxy, cache } }
  } finally {
    between.close()
  }
}

/** Waits until the process is where it should be, whole, and returns where it is. */
export async function settled(
  stage: Stage,
  end: Plan['end'],
  why: () => string,
): Promise<Pick<Row, 'original' | 'copy'>> {
  const goal = { stays: 'runs none', moves: 'gone runs', held: 'gone held' }[end]
  let now = ''
  for (let time = 0; time < 20 && now !== goal; time++) now = `${originalOf(stage)} ${await copyOf(stage)}`
  assert.is(now, goal, why())
  if (end === 'stays') await stage.stayed()
  if (end === 'moves') await stage.arrived()
  const [original = '', copy = ''] = now.split(' ')
  return { original, copy }
}

/** What lies in the work directories, and beside them. CRIU's own statistics and the log of the load are not ours. */
export function leftIn({ source, target, folder }: Stage): string[] {
  const list = (path: string): string[] => (existsSync(path) ? readdirSync(path) : [])
  const beside = list(folder).filter((name) => !/^(load\.|source$|target$|dump\.|out$|cache\.pid$)/.test(name))
  return [...list(source), ...list(target), ...beside].filter((name) => !/^stats-|\.log$/.test(name))
}

function startOf({ fault, original, copy, exit, left }: Row): string {
  const names = left.map((name) => name.replace(/\d{8}T\d{6}-\S+?-\w+/, 'ID').replace(/^\d+\./, 'PID.'))
  return `| ${[fault, original, copy, exit, names.join(' ') || '-'].join(' | ')} |`
}

/** With the name of each; a shell's lines have names of their own. What is said again and again is quoted once. */
function quote(commands: Record<string, Running>): string {
  const says = Object.entries(commands).flatMap(([name, running]) =>
    running
      .stderr()
      .split('\n')
      .filter((line) => / failed: | error: |handed over|is held until/.test(line))
      .map((line) => (name === 'shell' ? line.replace('error: ', '') : line.replace(/^[\w-]+:( error:)?/, `${name}:`))),
  )
  return says
    .filter((line, index) => line !== says[index - 1])
    .map((line) => line.replaceAll(/\d{8}T\d{6}-\S+?-\w+/g, 'ID').replaceAll(/\/\S*ferry-test-\w+/g, 'DIR'))
    .map((line) => line.replaceAll('|', '/'))
    .join('<br>')
}

const heading = `# Reliability

What was seen when things broke, with the real CRIU. This page is written by
\`test/real-criu/faults.test.ts\` and \`test/real-criu/faults-ends.test.ts\`, which play every row in
each complete run of the tests. Where a row says nothing else, a process that checks its memory is
dumped by \`criu dump --stream\` with the action script of the proxy, \`proxy --until running\` hands it
over to \`cache --restore\` in other pid and mount namespaces, and one thing breaks. "here" is the
process at the source, "there" its copy on the target. ID stands for the name of a snapshot. In
every row one copy lives, or a stopped one is named, and its memory was whole.

`

/** By name, without the heading. */
function sectionsOf(text: string): Map<string, string> {
  const parts = text.split(/^## /m).slice(1)
  return new Map(parts.map((part) => [part.split('\n', 1)[0] as string, part.slice(part.indexOf('\n') + 1).trim()]))
}

function write(section: string, about: string, table: readonly string[], version: string): void {
  const head = '| fault | here | there | exit code | left over | what the commands said |\n|---|---|---|---|---|---|'
  const made =
    `Made with CRIU ${version} on Linux ${release()}, Node ${process.versions.node}, on ` +
    `${new Date().toISOString().slice(0, 10)}.`
  const sections = sectionsOf(existsSync(document) ? readFileSync(document, 'utf8') : '')
  sections.set(section, `${about}\n\n${head}\n${table.join('\n')}\n\n${made}`)
  const parts = [...sections].map(([name, text]) => `## ${name}\n\n${text}\n`)
  writeFileSync(document, `${heading}${parts.join('\n')}`)
}
