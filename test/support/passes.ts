/** What the tests are run with, in which order, and about how long they take. */
import { existsSync, readdirSync } from 'node:fs'
import { join, relative } from 'node:path'
import { nodeLts } from './programs.ts'
import { root } from './run.ts'

export interface Task {
  /** Relative to `test/`. */
  file: string
  pass: string
  env: Record<string, string>
  /** The Node.js that runs it, if it is not the one that runs the tests. */
  node?: string
  /** After this long it has hung, ms. */
  limitMs: number
  /** What it takes alone on two cores, seconds, from an earlier run. */
  seconds: number
}

interface Pass {
  pass: string
  files: RegExp
  env: Record<string, string>
  node?: string
}

const criu = (suite: string): string => join(root, '.criu', suite, 'criu')
const rooms = 'stream|commands|handover|criu|precopy|cache|criu-remote'

/** Files that take minutes. */
const longScripts = 'soak|hostile-|proxy-cache|remote-across|tls|daemon|usage|bench|other-users|silence'
const long = new RegExp(
  `^(vm/|real-criu/(soak|debts|late|page-port|recipes|resume)|cache/conversations|scripts/(${longScripts}))`,
)
/** What a change breaks first: every file but the long ones, and of the fault matrix the most important rows. */
const quick: Pass[] = [
  { pass: 'newest CRIU', files: new RegExp(`^(?!${long.source.slice(1)})`), env: { FERRY_TESTS: 'quick' } },
  {
    pass: 'no splice, no CRIU',
    // Where the data paths differ (`spliceAllowed`).
    files: /^stream\/|^criu\/(capture|serve|restore|warm-up)|^scripts\/pipe/,
    env: { FERRY_NO_SPLICE: '1', FERRY_CRIU: 'none', FERRY_TESTS: 'quick' },
  },
]

const live = /^real-criu\/(?!faults|page-port|soak)/
const withoutSplice = new RegExp(`^(${rooms}|scripts)/(?!soak|daemon|build|flatten|bench|connections)`)
const all: Pass[] = [
  { pass: 'newest CRIU', files: /^(?!real-criu\/soak)/, env: {} },
  { pass: 'newest CRIU, newest LTS of Node.js', files: /^(?!vm\/|real-criu\/soak)/, env: {}, node: nodeLts },
  { pass: 'newest CRIU, for long', files: /^real-criu\/soak/, env: {} },
  { pass: 'no splice, no CRIU', files: withoutSplice, env: { FERRY_NO_SPLICE: '1', FERRY_CRIU: 'none' } },
  { pass: 'no CRIU', files: /^real-criu/, env: { FERRY_CRIU: 'none' } },
  { pass: 'no splice, CRIU 4.2', files: live, env: { FERRY_NO_SPLICE: '1', FERRY_CRIU: criu('sid') } },
  { pass: 'CRIU 4.2', files: /^real-criu\/(handover|loads)/, env: { FERRY_CRIU: criu('sid') } },
  { pass: 'CRIU 4.1', files: live, env: { FERRY_CRIU: criu('trixie') } },
]

/** Files that take longer than most, in seconds; without a CRIU those of real-criu are skipped at once. */
const slow: Record<string, number> = {
  'real-criu/soak': 600,
  'vm/vm': 300,
  'real-criu/faults': 310,
  'real-criu/faults-ends': 220,
  'scripts/proxy-cache': 100,
  'scripts/hostile-memory': 160,
  'scripts/tls': 85,
  'scripts/soak': 80,
  'scripts/hostile-peers': 75,
  'real-criu/debts': 75,
  'real-criu/recipes': 70,
  'real-criu/handover': 70,
  'scripts/daemon': 65,
  'scripts/usage': 45,
  'real-criu/holders': 45,
  'scripts/bench': 45,
  'real-criu/loads': 40,
  'scripts/other-users': 40,
  'real-criu/page-port': 40,
  'scripts/silence': 40,
  'scripts/stock': 35,
  'real-criu/resume': 35,
  'real-criu/late': 30,
  'stream/session': 30,
  'scripts/resume': 30,
  'scripts/remote': 28,
  'real-criu/pre-copy': 28,
  'cache/conversations': 26,
  'scripts/connections': 23,
  'store/snapshots': 21,
  'scripts/remote-across': 20,
  'scripts/pipe': 19,
  'scripts/remote-wire': 18,
  'scripts/compress': 17,
  'real-criu/remote-wire': 13,
  'real-criu/dedup': 12,
  'real-criu/keep': 12,
  'store/chain-memory': 12,
}
/** What the rows of the fault matrix take that `npm test` plays. */
const quickSlow: Record<string, number> = { 'real-criu/faults': 45, 'real-criu/faults-ends': 45 }
const OTHERS_SECONDS = 4

const LIMIT_MS = 10 * 60_000
/** The soak takes ten minutes, and so does the emulated machine where other tests run beside it. */
const LONGER = /^(vm\/|real-criu\/soak)/

const ALL = '--all'

/**
 * With `--all` everything. With words all files that have one of them in their names, in every pass. With neither the
 * files of `npm test`. The longest go first.
 */
export function tasks(words: readonly string[]): Task[] {
  const everything = words.includes(ALL)
  const isWanted = (file: string): boolean =>
    everything || words.length === 0 || words.some((word) => file.includes(word))
  const files = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.test.ts') && isWanted(file))
    .sort()
  return (words.length === 0 ? quick : all)
    .flatMap(({ files: which, ...task }) => {
      const { FERRY_CRIU: program = 'none' } = task.env
      if (program !== 'none' && !existsSync(program)) {
        console.log(`skipped: ${task.pass}: ${relative(root, program)} could not be fetched`)
        return []
      }
      if (task.node !== undefined && !existsSync(task.node)) {
        console.log(`skipped: ${task.pass}: it could not be fetched, Node.js ${process.versions.node} runs it`)
        task.node = process.execPath
      }
      return files
        .filter((file) => which.test(file))
        .map((file) => ({
          ...task,
          file,
          limitMs: (LONGER.test(file) ? 2 : 1) * LIMIT_MS,
          seconds: secondsOf(file, task.env),
        }))
    })
    .sort((one, other) => other.seconds - one.seconds)
}

function secondsOf(file: string, env: Record<string, string>): number {
  const name = file.replace(/\.test\.ts$/, '')
  if (env.FERRY_CRIU === 'none' && name.startsWith('real-criu/')) return 1
  return (env.FERRY_TESTS === 'quick' ? quickSlow[name] : undefined) ?? slow[name] ?? OTHERS_SECONDS
}
