/**
 * Scenarios of rounds to a cache: by pre-copy, and by criu processes that somebody else starts, through the proxy's
 * page server port.
 */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { formatSize, parseSize } from '../../lib/size.ts'
import { dirtyingLoad, javaLoad, type Load } from '../support/loads.ts'
import { classes, type Running, start } from '../support/run.ts'
import { type Stage, staged } from '../support/stage.ts'
import { criuOf, done, expect, frozenMs, fullDump, percent, type Release, type Scenario, without } from './scenario.ts'

const PERCENT = 5
/** One that is seen to be small or whole: of a quarter of it the pages change. */
const small = dirtyingLoad(24, 25)

/** What one chain sent, in bytes. */
interface Moved {
  rounds: number[]
  last: number
}

/** Of each chain that pre-copy or a proxy has told of and sent to its end. */
function moved(stderr: string): Moved[] {
  return [...stderr.matchAll(/snapshot (\S+) sent and sealed by the cache: \d+ images, ([\d.]+ \w+) in/g)].map(
    ([, id, last = '']) => ({
      rounds: [...stderr.matchAll(/snapshot (\S+), round \d+: (\d+) pages/g)]
        .filter((round) => round[1] === id)
        .map(([, , pages]) => Number(pages) * 4096),
      last: parseSize(last.replace(' ', '')),
    }),
  )
}

/** Figures of a chain that has been worth its while. */
function shrunk({ rounds, last }: Moved, least = 2): string {
  const [first = 0] = rounds
  const seen = `${rounds.map(formatSize).join(', ')}, then ${formatSize(last)}: ${percent(last, first)} % of the first`
  expect(rounds.length >= least && last <= first / 10, `${rounds.length} rounds: ${seen}`)
  return seen
}

async function ended(running: Running, ...others: Running[]): Promise<string> {
  const { code, stderr } = await running.ended
  expect(code === 0, stderr + others.map((other) => other.stderr()).join(''))
  return stderr
}

async function restored(cache: Running, many = 1): Promise<void> {
  const [seen] = await cache.says(new RegExp(`(restored in[^]*){${many}}|criu restore failed`))
  expect(seen.startsWith('restored'), cache.stderr())
}

function preCopy({ folder, load }: Stage, criu: string, port: string): Running {
  const place = ['-D', join(folder, 'owed'), '--criu', criu, '--floor', '0', '--max-rounds', '3']
  return start('pre-copy', ['-v', '-t', String(load.pid), '--port', port, ...place], { cwd: folder })
}

/** The same way at once: a copy of all of it to the cache, held until that has sealed it. */
async function sentWhole(stage: Stage, port: string): Promise<string> {
  const proxy = await stage.proxy(port)
  const directory = join(stage.folder, 'whole')
  mkdirSync(directory)
  await ended(stage.dump('-R', '-W', directory), proxy)
  await proxy.says(/the source runs on/)
  await proxy.stop()
  return `, and to the cache for ${frozenMs(directory).toFixed(0)} ms`
}

/**
 * By pre-copy, to a cache that restores with the CRIU of `target`. `compared`: with a dump of all by the same way, too.
 */
async function byCommand(criu: string, load: Load, target: string, compared = false): Promise<string> {
  let figures = ''
  await staged(criu, load, async (stage) => {
    const { cache, port } = await stage.cache('--restore', '--criu', target)
    const whole = await fullDump(criu, stage.load.pid, stage.folder)
    const sent = compared ? await sentWhole(stage, port) : ''
    const stderr = await ended(preCopy(stage, criu, port), cache)
    await restored(cache)
    await stage.arrived()
    const [one = { rounds: [], last: 0 }] = moved(stderr)
    const [, frozen = ''] = /frozen for ([\d.]+) s/.exec(stderr) ?? []
    const still = `frozen for ${(1000 * Number(frozen)).toFixed(0)} ms`
    figures = `${shrunk(one)}; ${still}, a whole dump to tmpfs for ${whole.frozen.toFixed(0)} ms${sent}`
  })
  return figures
}

const command: Scenario = {
  releases: ['trixie'],
  name: `pre-copy: three rounds of a process of 256 MiB of which ${PERCENT} % change, and the hand-over`,
  play: (criu) => byCommand(criu, dirtyingLoad(256, PERCENT), criu, true),
}

/** Its own images an older CRIU would not restore: nr_pages is in another field. */
const older: Scenario = {
  releases: ['experimental'],
  name: 'pre-copy, restored by CRIU 4.1',
  missing: () => without('trixie'),
  play: (criu) => byCommand(criu, dirtyingLoad(64, PERCENT), criuOf('trixie')),
}

/** With a small heap of the garbage, and no compiler that takes longer than what it compiles. */
const frugal = ['-XX:+UseSerialGC', '-Xmx96m', '-Xmn4m', '-XX:TieredStopAtLevel=1']

const java: Scenario = {
  releases: ['sid'],
  name: 'pre-copy: OpenJDK, with a listener and 64 MiB of arrays',
  missing: () => (existsSync(classes) ? undefined : 'no JDK on this machine'),
  play: (criu) => byCommand(criu, javaLoad(frugal, 5000, 64), criu),
}

/** A criu of somebody else at the proxy's port. */
function stock({ folder, load, source }: Stage, criu: string, port: string, script = source) {
  let step = 0
  return (action: 'pre-dump' | 'dump', parent: boolean, ...more: string[]): Running => {
    step++
    mkdirSync(join(folder, String(step)))
    return start(
      criu,
      [
        ...[action, '-t', String(load.pid), '-D', String(step), '--track-mem'],
        ...['--page-server', '--address', '127.0.0.1', '--port', port],
        ...(parent ? ['--prev-images-dir', `../${step - 1}`] : []),
        ...(action === 'dump' ? ['--action-script', join(script, 'post-dump')] : []),
        ...more,
      ],
      { cwd: folder },
    )
  }
}

async function pageProxy(stage: Stage, port: string): Promise<{ proxy: Running; pages: string }> {
  const proxy = await stage.proxy(port, '--page-server-port', '0')
  const [, pages = ''] = await proxy.says(/listening on 127\.0\.0\.1:(\d+)/)
  return { proxy, pages }
}

/** Plays on as many stages at once as there are loads. */
async function stagedAll(
  criu: string,
  loads: readonly Load[],
  body: (stages: readonly Stage[]) => Promise<void>,
  stages: readonly Stage[] = [],
): Promise<void> {
  const [load, ...others] = loads
  if (load === undefined) await body(stages)
  else await staged(criu, load, (stage) => stagedAll(criu, others, body, [...stages, stage]))
}

/**
 * The two at the first proxy have records of another layout. Who takes a page, or a parent, for another's leaves a
 * process with wrong memory.
 */
const many: Scenario = {
  name: 'three trees at once to one cache: two by one proxy (CRIU 4.1, and 4.3 with shared memory), one by another',
  releases: ['sid'],
  missing: () => without('trixie', 'experimental'),
  async play(criu) {
    let figures = ''
    const loads = [dirtyingLoad(128, PERCENT), dirtyingLoad(144, PERCENT, 1), dirtyingLoad(112, PERCENT)]
    await stagedAll(criu, loads, async (stages) => {
      const [first, second, third] = stages as [Stage, Stage, Stage]
      const { cache, port } = await first.cache('--restore', '--criu', criu)
      const proxies = [await pageProxy(first, port), await pageProxy(third, port)] as const
      const [one, other] = proxies
      const trees = [
        stock(first, criuOf('trixie'), one.pages),
        stock(second, criuOf('experimental'), one.pages, first.source),
        stock(third, criu, other.pages),
      ]
      const told = (): Running[] => [...proxies.map(({ proxy }) => proxy), cache]
      const chains = trees.map(async (tree) => {
        for (const round of [1, 2, 3]) await ended(tree('pre-dump', round > 1), ...told())
        await ended(tree('dump', true), ...told())
      })
      await Promise.all(chains)
      await restored(cache, 3)
      for (const { load } of stages) {
        await load.gone
        await load.verify(first.host.outerPid(load.pid))
      }
      const by = proxies.map(({ proxy }) => moved(proxy.stderr()))
      expect(by.map(({ length }) => length).join() === '2,1', `snapshots of the two: ${JSON.stringify(by)}`)
      const frozen = stages.map(({ folder }) => frozenMs(join(folder, '4')).toFixed(0))
      figures = `${by
        .flat()
        .map((chain) => shrunk(chain, 3))
        .join('; ')}; frozen for ${frozen.join(', ')} ms`
    })
    return figures
  },
}

interface Tools {
  cache: Running
  proxy: Running
  criu: ReturnType<typeof stock>
}

/** By criu itself through a proxy, to a cache that restores with the CRIU of another release. */
async function byPort(
  criu: string,
  target: Release,
  body: (stage: Stage, tools: Tools) => Promise<void>,
): Promise<string> {
  let figures = ''
  await staged(criu, small, async (stage) => {
    const { cache, port } = await stage.cache('--restore', '--criu', criuOf(target))
    const { proxy, pages } = await pageProxy(stage, port)
    await body(stage, { cache, proxy, criu: stock(stage, criu, pages) })
    await restored(cache)
    await stage.arrived()
    const last = moved(proxy.stderr()).at(-1)?.last ?? 0
    expect(last > 24 * 2 ** 20, proxy.stderr())
    figures = `the last dump was a whole one, ${formatSize(last)}`
  })
  return figures
}

/**
 * A dump of another kind clears the kernel's marks: a chain that went on would miss what was written before it, and
 * nobody would notice.
 */
const broken: Scenario = {
  name: 'a dump of another kind between a round and the dump: the chain is not gone on with; restored by CRIU 4.2',
  releases: ['trixie'],
  missing: () => without('sid'),
  play: (criu) =>
    byPort(criu, 'sid', async (stage, tools) => {
      await ended(tools.criu('pre-dump', false), tools.proxy, tools.cache)
      await ended(stage.dump('-R', '--track-mem', '-W', stage.folder), tools.proxy, tools.cache)
      await ended(tools.criu('dump', true), tools.proxy, tools.cache)
    }),
}

/** The last dump fails when its pages are out, and the process runs on: the next dump must not build on it. */
const vetoed: Scenario = {
  name:
    'a last dump that fails when all is there: the process runs on, and the next one begins anew; ' +
    'restored by CRIU 4.1',
  releases: ['sid'],
  missing: () => without('trixie'),
  play: (criu) =>
    byPort(criu, 'trixie', async (stage, tools) => {
      await ended(tools.criu('pre-dump', false), tools.proxy, tools.cache)
      const failing = join(stage.folder, 'failing')
      writeFileSync(failing, '#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]\n', { mode: 0o700 })
      const refused = await tools.criu('dump', true, '--action-script', failing).ended
      expect(refused.code !== 0, 'it was not refused')
      await tools.proxy.says(/the process that it dumped runs on: the dump failed/)
      await tools.proxy.says(/not handed over: the source runs on, the target runs nothing of it/)
      await stage.load.runsOn()
      await ended(tools.criu('dump', true), tools.proxy, tools.cache)
    }),
}

/**
 * CRIU 4.3 sends only what changed by the stream, too, and its rounds may be anywhere: who killed the process for that
 * had lost it.
 */
const elsewhere: Scenario = {
  name: 'a dump by the stream whose round went elsewhere: refused, and the process runs on',
  releases: ['experimental'],
  async play(criu) {
    await staged(criu, small, async (stage) => {
      const { port } = await stage.cache()
      const proxy = await stage.proxy(port)
      const round = join(stage.folder, 'round')
      mkdirSync(round)
      await done(criu, ['pre-dump', '--track-mem', '-t', String(stage.load.pid), '-D', round])
      // Where the command line does not tell, the cache finds it in the images.
      const config = join(stage.folder, 'criu.conf')
      writeFileSync(config, 'track-mem\nprev-images-dir ../round\n')
      for (const [options, refusal] of [
        [
          ['--track-mem', '--prev-images-dir', '../round'],
          /criu dumps with --prev-images-dir: pages of the dump before/,
        ],
        [['--config', config], /has pages in a parent, which did not come here/],
      ] as const) {
        expect((await stage.dump(...options).ended).code !== 0, 'it was not refused')
        await proxy.says(refusal)
        await stage.load.runsOn()
      }
    })
    return 'it runs on'
  },
}

export const preCopying: Scenario[] = [elsewhere, command, older, java, many, broken, vetoed]
