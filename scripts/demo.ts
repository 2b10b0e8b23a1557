/**
 * Shows the main job: a process that checks its own memory is handed over to another host. Without a CRIU it shows the
 * way of recorded images.
 */
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { findCriu } from '../lib/criu/run.ts'
import { decodeDumpStats } from '../lib/format/stats.ts'
import { childrenOf } from '../lib/kernel/process.ts'
import { patternLoad } from '../test/support/loads.ts'
import { type Showing, showing } from '../test/support/showing.ts'

const MIB = 128
const LIMIT_MS = 60_000
const images = join(dirname(import.meta.dirname), 'fixtures', 'images')

async function handOver({ folder, say, begin, finish, processes }: Showing, criu: string): Promise<void> {
  const last = (line: RegExp): string | undefined =>
    readFileSync(join(folder, 'load.log'), 'utf8')
      .split('\n')
      .findLast((each) => line.test(each))
  const load = await patternLoad(MIB).start(folder)
  // A pid and a mount namespace, as another host has: the copy gets the number that the process has here.
  const host = 'unshare --pid --fork --mount-proc --kill-child'
  const cache = begin(`${host} cache --port 0 -D /run/target --restore`)
  const [, port] = await cache.says(/listening on .*:(\d+)[\s\S]*streamer-serve/)
  const proxy = begin(`proxy --port ${port} -D /run/source --until running`)
  await proxy.says(/streamer-capture/)
  say(`process ${load.pid}, ${MIB} MiB, counts: ${last(/^\d+ ok$/)}`)
  await finish(`criu dump --stream -t ${load.pid} -D /run/source --action-script /run/source/post-dump`, criu)
  await Promise.all([load.gone, proxy.says(/it runs on the target/), cache.says(/restored in/)])
  const [copy = 0, ...more] = processes('load.log')
  if (copy === 0 || more.length > 0) throw new Error(`${copy === 0 ? 'no copy lives' : 'more than one copy lives'}`)
  const [, there] = /^NSpid:.*\s(\d+)$/m.exec(readFileSync(`/proc/${copy}/status`, 'utf8')) ?? []
  say(`process ${load.pid} is gone; one copy lives: process ${there} of the other host (${copy} here)`)
  await load.verify(copy)
  say(`it counts on, and left nothing out: ${last(/^\d+ ok$/)}; its memory: ${last(/^all /)}`)
  const { frozenTime } = decodeDumpStats(readFileSync(join(folder, 'source', 'stats-dump')))
  const [moved] = /[\d.]+ .iB/.exec(proxy.stderr()) ?? []
  say(`frozen for ${(frozenTime / 1e6).toFixed(3)} s while ${moved} moved; no image touched a disk`)
  // unshare blocks SIGTERM while it waits for the cache.
  for (const pid of childrenOf(cache.child.pid as number)) process.kill(pid)
  await Promise.all([cache.ended, proxy.stop()])
}

async function recorded({ say, finish }: Showing, why: Error): Promise<void> {
  say(`demo: ${why.message}: showing the way of recorded images instead of a live process`)
  await finish(`dump-to-stdout -v --from-dir ${images} | restore-from-socket -v --from - --to-dir /run/images`)
  await finish(`diff -r ${images} /run/images && echo "all images arrived, byte for byte"`)
}

process.exit(
  await showing('demo', LIMIT_MS, async (play) => {
    let criu: string
    try {
      criu = findCriu()
    } catch (error) {
      return recorded(play, error as Error)
    }
    return handOver(play, criu)
  }),
)
