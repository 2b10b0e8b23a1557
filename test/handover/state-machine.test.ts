/** Every order of events, every lost message and every death that the two machines can meet: never two, never none. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Until, Verdict } from '../../lib/format/enums.ts'
import {
  type SourceEvent,
  type SourceState,
  sourceAfter,
  type TargetEvent,
  type TargetState,
  targetAfter,
  verdictOf,
} from '../../lib/handover/state-machine.ts'

const test = suite('handover/state-machine')

type Word = 'sealed' | 'ready' | 'refused'

/** Both hosts and the link between them, as far as they matter. */
interface World {
  until: Until
  source: SourceState
  /** The source's tasks: held by CRIU, killed, or running again. */
  tasks: 'frozen' | 'dead' | 'running'
  criu: 'works' | 'waits at the gate' | 'ended'
  target: TargetState
  /** What the target has sent and the source has not received. */
  toSource: readonly Word[]
  link: 'up' | 'cut'
  /** The verdict was heard by the target. */
  told: boolean
  gated: boolean
  /** CRIU was asked to leave the tasks. */
  leaves: boolean
}

interface Step {
  what: string
  next: World
}

/** What can happen next. */
function steps(world: World): Step[] {
  const all: Step[] = []
  const add = (what: string, change: Partial<World>): void => void all.push({ what, next: { ...world, ...change } })
  const { source, target, tasks, criu, link, toSource, until, gated, leaves } = world

  const toTarget = (event: TargetEvent): Partial<World> => {
    const next = targetAfter(target, event)
    const says: Word | undefined =
      next === target ? undefined : event === 'all here' ? 'sealed' : next === 'holding' ? 'ready' : undefined
    const refuses: Word | undefined = event === 'restore failed' && next !== target ? 'refused' : undefined
    // Once of each is enough, and keeps the worlds finite.
    const isNew = (word: Word | undefined): word is Word => word !== undefined && !toSource.includes(word)
    const words = [says, refuses].filter(isNew)
    return { target: next, ...(link === 'up' && { toSource: [...toSource, ...words] }) }
  }
  const toSourceEnd = (event: SourceEvent): Partial<World> => ({ source: sourceAfter(source, event) })

  if (link === 'up') {
    if (target === 'receiving' && criu !== 'works') add('all images are here', toTarget('all here'))
    add('the link is cut', { link: 'cut', toSource: [], ...(target === 'receiving' && toTarget('cut')) })
    const [word, ...rest] = toSource
    if (word !== undefined) {
      const agrees = word === (until === 'sealed' ? 'sealed' : 'ready')
      const event = word === 'refused' ? 'failed' : agrees ? 'agreed' : undefined
      add(`the source hears ${word}`, { toSource: rest, ...(event && toSourceEnd(event)) })
    }
  }
  // The link may be cut before the source notices, or the time-out comes: both end the offer.
  if (source === 'offering') add('the offer ends', toSourceEnd('failed'))

  if (criu === 'works') add('CRIU has written all', { criu: 'waits at the gate' })
  if (criu === 'works') add('CRIU fails', { criu: 'ended', tasks: 'running' })
  if (criu === 'waits at the gate') {
    const isFree = !gated || source === 'letting go'
    if (isFree && !leaves) add('CRIU kills the tasks', { criu: 'ended', tasks: 'dead' })
    if (isFree && leaves) add('CRIU leaves the tasks', { criu: 'ended', tasks: 'running' })
    if (isFree) add('CRIU fails late', { criu: 'ended', tasks: 'running' })
    if (gated && (source === 'resumed' || source === 'copied'))
      add('CRIU is refused', { criu: 'ended', tasks: 'running' })
    add('CRIU is killed', { criu: 'ended', tasks: 'running' })
  }
  if (tasks === 'dead') add('the source sees them dead', toSourceEnd('dead'))
  if (criu === 'ended' && tasks === 'running') {
    add('the source sees them alive', toSourceEnd(leaves ? 'left' : 'ran on'))
  }

  const verdict: Verdict | undefined = verdictOf(source)
  // Over the same link or a new one, at any time, any number of times.
  if (verdict !== undefined && target !== 'receiving') add(`told ${verdict}`, { ...toTarget(verdict), told: true })
  // Who has everything may learn it; who has not is told as well, and drops it.
  if (verdict === 'drop' && target === 'receiving') add('told drop', toTarget('drop'))

  for (const event of ['restore', 'restored', 'restore failed'] as const) {
    if (targetAfter(target, event) !== target && !(target === 'running' && event === 'restore failed')) {
      add(`target: ${event}`, toTarget(event))
    }
  }
  return all
}

function start(until: Until, gated: boolean, leaves = false): World {
  return {
    until,
    gated,
    leaves,
    source: 'offering',
    tasks: 'frozen',
    criu: 'works',
    target: 'receiving',
    toSource: [],
    link: 'up',
    told: false,
  }
}

/** Every world that can be reached, with the events that lead to it. */
function explore(from: World): Map<string, { world: World; path: string[] }> {
  const seen = new Map([[JSON.stringify(from), { world: from, path: [] as string[] }]])
  for (const { world, path } of seen.values()) {
    for (const { what, next } of steps(world)) {
      const key = JSON.stringify(next)
      if (!seen.has(key)) seen.set(key, { world: next, path: [...path, what] })
    }
  }
  return seen
}

for (const until of ['sealed', 'running'] as const) {
  const worlds = [...explore(start(until, true)).values()]

  test(`until ${until}: never two copies run`, () => {
    assert.ok(worlds.length > 100, String(worlds.length))
    for (const { world, path } of worlds) {
      assert.not(world.tasks === 'running' && world.target === 'running', path.join(', '))
      // A source whose tasks are frozen may still let them run.
      assert.not(world.tasks === 'frozen' && world.target === 'running', path.join(', '))
    }
  })

  test(`until ${until}: never none, the target has at least all images`, () => {
    for (const { world, path } of worlds) {
      if (world.tasks !== 'dead') continue
      const has: TargetState[] = ['sealed', 'restoring', 'holding', 'owning', 'reviving', 'running']
      assert.ok(has.includes(world.target), `${world.target} after: ${path.join(', ')}`)
    }
  })

  test(`until ${until}: every world can still end with one copy that runs`, () => {
    const done = ({ tasks, target }: World): boolean =>
      (tasks === 'running' && (target === 'dropped' || target === 'receiving')) ||
      (tasks === 'dead' && target === 'running')
    // Backwards from the good ends.
    const good = new Set(worlds.filter(({ world }) => done(world)).map(({ world }) => JSON.stringify(world)))
    for (let before = -1; before !== good.size; ) {
      before = good.size
      for (const { world } of worlds) {
        if (steps(world).some(({ next }) => good.has(JSON.stringify(next)))) good.add(JSON.stringify(world))
      }
    }
    for (const { world, path } of worlds) assert.ok(good.has(JSON.stringify(world)), path.join(', '))
  })
}

for (const [gated, leaves] of [
  [true, false],
  [false, false],
  [true, true],
  [false, true],
] as const) {
  const how = `${gated ? 'with' : 'without'} the gate${leaves ? ', to be left' : ''}`

  test(`${how}: what runs on at its source is restorable only where it was to be left`, () => {
    const worlds = [...explore(start('sealed', gated, leaves)).values()]
    const ranOn = worlds.filter(({ world }) => world.tasks === 'running' && world.criu === 'ended')
    assert.ok(ranOn.length > 20)
    for (const { world, path } of ranOn) {
      const verdict = verdictOf(world.source)
      if (leaves) continue
      assert.ok(verdict === undefined || verdict === 'drop', `${verdict} after: ${path.join(', ')}`)
      if (world.told) assert.is(world.target, 'dropped', path.join(', '))
    }
    assert.is(
      ranOn.some(({ world }) => verdictOf(world.source) === 'copy'),
      leaves,
    )
    for (const { world, path } of worlds) {
      assert.not(world.tasks === 'running' && world.target === 'running', path.join(', '))
    }
  })
}

test('a criu without the gate can lose the process, and that is what the gate is for', () => {
  const worlds = [...explore(start('sealed', false)).values()]
  assert.ok(worlds.some(({ world }) => world.tasks === 'dead' && world.target === 'dropped'))
  assert.not(worlds.some(({ world }) => world.tasks === 'running' && world.target === 'running'))
})

test('what is not in the tables changes nothing', () => {
  const sources: SourceState[] = ['offering', 'letting go', 'gone', 'resumed', 'copied']
  for (const state of sources.slice(2)) {
    for (const event of ['agreed', 'failed', 'dead', 'left', 'ran on'] as const) {
      assert.is(sourceAfter(state, event), state)
    }
  }
  assert.is(sourceAfter('letting go', 'failed'), 'letting go')
  assert.is(targetAfter('running', 'drop'), 'running')
  assert.is(targetAfter('dropped', 'go'), 'dropped')
  assert.is(targetAfter('holding', 'cut'), 'holding')
  assert.equal(sources.map(verdictOf), [undefined, undefined, 'go', 'drop', 'copy'])
})

test.run()
