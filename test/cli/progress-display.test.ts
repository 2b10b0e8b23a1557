import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { describeProgress } from '../../lib/cli/progress-display.ts'
import { Fault } from '../../lib/fault.ts'
import type { Progress } from '../../lib/progress.ts'

const test = suite('cli/progress-display')

const amount = { id: 'web-1', images: 12, bytes: 3 * 2 ** 20, ms: 1500 }

const lines: [Progress, string][] = [
  [{ event: 'listening', at: '127.0.0.1:9997' }, 'listening on 127.0.0.1:9997'],
  [{ event: 'ready' }, 'ready'],
  [{ event: 'status', of: 'proxy', dumps: 2, sent: 3 * 2 ** 20 }, 'status: dumps in progress: 2, sent: 3.00 MiB'],
  [
    {
      event: 'status',
      of: 'cache',
      snapshots: 3,
      chains: 2,
      used: 2 ** 21,
      limit: 2 ** 29,
      links: 1,
      silent: 2,
      peers: 2 ** 15,
      parked: 4,
    },
    'status: snapshots: 3, chains: 2, memory: 2.00 MiB of 512 MiB, links: 1, silent: 2, held for ' +
      'peers: 32.0 KiB, restores that wait: 4',
  ],
  [{ event: 'waiting', what: 'the newest snapshot' }, 'waiting for the newest snapshot'],
  [
    { event: 'sent', ...amount, verified: true },
    'snapshot web-1 sent and sealed by the cache: 12 images, 3.00 MiB in 1.500 s (2.00 MiB/s)',
  ],
  [{ event: 'sent', ...amount, verified: false }, 'snapshot web-1 sent: 12 images, 3.00 MiB in 1.500 s (2.00 MiB/s)'],
  [
    { event: 'sealed', ...amount, digest: '00000000000000ff' },
    'snapshot web-1 sealed: 12 images, 3.00 MiB in 1.500 s (2.00 MiB/s), digest 00000000000000ff',
  ],
  [{ event: 'served', ...amount }, 'snapshot web-1 served: 12 images, 3.00 MiB in 1.500 s (2.00 MiB/s)'],
  [{ event: 'dumped', ms: 250, frozenMs: 12.3456 }, 'dumped in 0.250 s, frozen for 0.012 s'],
  [
    { event: 'handed over', id: 'web-1', verdict: 'go', fate: 'running' },
    'snapshot web-1 handed over: the source is gone, it runs on the target',
  ],
  [
    { event: 'not handed over', id: 'web-1' },
    'snapshot web-1 not handed over: the source runs on, the target runs nothing of it',
  ],
  [{ event: 'flattened', ...amount, layers: 4 }, 'flattened 4 layers: 12 images, 3.00 MiB in 1.500 s (2.00 MiB/s)'],
  [{ event: 'flattened', ...amount, layers: 1 }, 'flattened 1 layer: 12 images, 3.00 MiB in 1.500 s (2.00 MiB/s)'],
  [{ event: 'restored', ms: 61_000 }, 'restored in 61.000 s'],
  [
    { event: 'small pipes', bytes: 2 ** 16 },
    'pipes hold only 64.0 KiB, and a dump takes up to twice as long: raise fs.pipe-max-size and ' +
      'fs.pipe-user-pages-soft with sysctl, or give CAP_SYS_RESOURCE',
  ],
  [
    { event: 'failed', what: 'snapshot web-1', fault: new Fault('LINK', 'the cache left', { hint: 'not shown here' }) },
    'snapshot web-1 failed: the cache left',
  ],
]

for (const [progress, line] of lines) {
  test(`${progress.event} is one line: ${line}`, () => {
    assert.is(describeProgress(progress), line)
  })
}

test.run()
