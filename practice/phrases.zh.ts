/** What the practice model understands and says in Chinese: see phrases.ts. */

import type { Kind, Language, Patterns, Sentences } from "./phrases.ts";

/** A file or folder: text in quotes, or a word with a dot or a slash in it. */
const PATH =
  '(?<path>`[^`]+`|"[^"]+"|“[^”]+”|[\\w~@./\\\\-]*[./\\\\][\\w~@./\\\\-]*|它|这个文件|那个文件)';
const NAMED = `(?:(?:一个|名叫|名为|叫|文件夹|文件|目录)\\s*)*${PATH}\\s*(?:这个)?(?:文件夹|文件|目录)?`;
/** A folder without a name, such as "the workspace" or "here". */
const HERE = "(?:工作区|当前目录|这个目录|这里)?(?:里面|里|中|下)?(?:所有|全部)?的?(?:所有|全部)?";
const FOLDER = "(?<path>[\\w~@./\\\\-]+)\\s*(?:这个)?(?:文件夹|目录)?(?:里面|里|中|下)?";
const CHANGE = "(?:改成|换成|改为|换为|替换成|替换为)";
const READ = "(?:读取|读|打开|查看|看看|看|显示|念)(?:一遍|一下|下)?";
const RUN = "(?:用 ?bash ?)?(?:运行|执行|跑)(?:一遍|一下|下)?(?:这条|这个)?(?:命令)?[：:]?\\s*";
const VERB =
  "(?:请|帮我|再|先|也)*(?:读|看|打开|显示|念|运行|执行|跑|写|新建|创建|保存|存|把|将|改|替换|列出" +
  "|列一下|现在几点|几点|告诉我(?:现在)?(?:几点|时间)|记住|记下|搜索)";

/** "If it is after 08:00 and before 12:00, ". */
const WHEN =
  "(?:(?:如果|要是)?(?:现在)?(?:过了|晚于)\\s*(?<after>[\\d:]+)\\s*点?(?:以后|之后)?(?:[，,、]?(?:还)?" +
  "(?:没到|早于|不到)\\s*(?<before>[\\d:]+)\\s*点?)?[，,]?\\s*)?";

function patterns(...sources: string[]): RegExp[] {
  return sources.map((source) => new RegExp(source, "isu"));
}

const PATTERNS: Patterns = {
  read: patterns(
    `^(?:${READ}|总结一下|总结|概括一下|概括)\\s*(?:文件)?\\s*(?<paths>.*[./\\\\].*)$`,
    `^${READ}(?:它|这个文件|那个文件)?(?:的内容)?$`,
    "^(?<paths>\\S*[./]\\S*?)\\s*(?:这个文件)?(?:里面|里|中)?(?:写了|写着|写的是|有|是)些?(?:什么|啥)",
  ),
  run: patterns(
    `^${RUN}\`(?<command>[^\`]+)\``,
    `^${RUN}(?<command>[a-z~./][^，。]*)$`,
    "^`(?<command>[^`]+)`$",
    `^${RUN}(?<script>它)$`,
  ),
  write: patterns(
    `^(?:把|将)\\s*(?<content>.+?)\\s*(?:写|保存|存|放|记)(?:到|进|入|在)\\s*${NAMED}(?:里面|里|中)?$`,
    `^(?:写|保存|存)\\s*(?<content>.+?)\\s*(?:到|进|入)\\s*${NAMED}(?:里面|里|中)?$`,
    `^(?:在|往)\\s*${NAMED}\\s*(?:里面|里|中)?写(?:入|上|下)?[：:]?\\s*(?<content>.+)$`,
    `^(?:新建|创建|写)\\s*${NAMED}[，,]?\\s*(?:内容是|内容为|写上|写着)[：:]?\\s*(?<content>.+)$`,
    `^(?:新建|创建|写)(?:一个)?(?:脚本|程序)?\\s*${NAMED}[，,]?\\s*(?:打印|输出)\\s*(?<prints>.+)$`,
    `^(?:新建|创建)(?:一个)?空?\\s*${NAMED}$`,
  ),
  edit: patterns(
    `^(?:把|将)\\s*${NAMED}\\s*(?:里面|里|中)?的?\\s*(?<old>.+?)\\s*${CHANGE}\\s*(?<new>.+)$`,
    `^在\\s*${NAMED}\\s*(?:里面|里|中)?[，,]?\\s*(?:把|将)\\s*(?<old>.+?)\\s*${CHANGE}\\s*(?<new>.+)$`,
    `^(?:把|将)\\s*(?<old>.+?)\\s*${CHANGE}\\s*(?<new>.+)$`,
  ),
  list: patterns(
    `^(?:列出|列一下|显示|看看|看一下|查看)${HERE}(?:文件和文件夹|文件夹|文件|目录)$`,
    `^(?:列出|列一下|看看|看一下|查看)\\s*${FOLDER}的?(?:所有|全部)?(?:文件|内容)?$`,
    `^${HERE}都?有(?:哪些|什么|多少个?)(?:文件夹|文件|目录)$`,
    `^${FOLDER}都?有(?:哪些|什么|多少个?)(?:文件|东西|内容)?$`,
  ),
  time: patterns(
    "^(?:现在)?是?几点",
    "^今天是?(?:几号|几月几号|星期几|周几|什么日子)",
    "^(?:告诉我|看看|看一下|查一下)?(?:现在|当前)?的?(?:时间|日期|几点)",
  ),
  remember: patterns("^(?:记住|记下|记一下|别忘了?|不要忘记)[：:，,]?\\s*(?<content>.+)$"),
  recall: patterns(
    "^(?:搜索|查|找|翻)(?:一下)?(?:你的|我的)?记忆[里中]?(?:关于|有关)?[：:]?\\s*(?<query>.+)$",
    "^关于\\s*(?<query>.+?)[，,]?\\s*你还?(?:记得|知道)些?(?:什么|啥)$",
    "^关于\\s*(?<query>.+?)[，,]?\\s*我之?前?都?(?:跟你|对你|和你)?(?:说|讲|告诉|提)(?:过|了)?你?些?" +
      "(?:什么|啥|哪些)$",
    "^我之?前?都?(?:跟你|对你|和你)(?:说|讲|提)(?:过|了)?些?(?:什么|啥|哪些)关于\\s*(?<query>.+?)的?" +
      "(?:事情?|内容)?$",
  ),
  tell: patterns(
    `^${WHEN}(?:就)?(?:告诉|提醒)(?:主人|所有者)[：:，,]?\\s*(?<content>.+)$`,
    `^${WHEN}(?:就)?(?:对|跟|向)\\s*(?<name>[^说道，。]+?)\\s*(?:说|道)(?:一?声)?` +
      "(?<greeting>早上好|早安|下午好|晚上好|晚安)[。！!]*$",
  ),
  summary: patterns(
    "(?:总结|概括|归纳|小结|摘要).{0,20}(?:对话|会话|聊天|谈话|讨论|消息|历史|以上|上面|前面|到目前为止)",
    "(?:对话|会话|聊天|谈话|讨论|以上|上面|前面|到目前为止).{0,20}(?:总结|概括|小结|摘要)",
    "^(?:总结|概括|小结)(?:一下)?$",
  ),
  // The sections write to the model in English in every language.
  summarySystem: patterns("^summari[sz]e ", "(?:总结|概括)(?:这段|以上|下面的?)?(?:对话|会话)"),
  identity: patterns(
    "你是(?:谁|什么|真|人|机器|claude|chatgpt|gpt|ai|大模型|模型|语言模型|程序|哪个|哪家)",
    "你.*(?:什么|哪个|哪种)(?:大|语言)?模型",
    "真的?(?:大|语言)?模型",
    "你叫什么|你的名字",
    "自我介绍|(?:介绍|说说)(?:一下)?你?自己",
  ),
  help: patterns(
    "你?(?:能|会|可以)(?:帮我)?(?:做|干|问)些?(?:什么|啥)",
    "^(?:帮助|怎么用)$",
    "你有(?:哪些|什么)(?:工具|能力)",
  ),
  greeting: patterns(
    "^(?:你好|您好|大家好|嗨|哈喽|喂|(?<hour>早上好|上午好|早安|早|中午好|下午好|晚上好)|在吗|测试)" +
      "(?:[，, ]*(?:luna|sage|claude))?[\\s，。！!]*$",
  ),
  goodbye: patterns("^(?:再见|拜拜|回见|回头见|晚安|我走了)"),
  thanks: patterns(
    "^(?:谢谢|多谢|感谢|好的|好|很好|不错|太好了|太棒了|棒|厉害|行|可以|明白了|知道了)" +
      "[你您了]?[\\s，。！!]*$",
  ),
  howAreYou: patterns("^你(?:还)?好吗", "你?(?:最近|今天)(?:过得)?(?:怎么样|好吗|如何)"),
  count: patterns("(?:从\\s*(?<from>\\d+)\\s*(?:开始)?)?(?:慢慢地?)?数到\\s*(?<to>\\d+)"),
  haiku: patterns("俳句|(?:写|作|念|来)一?首小?诗|^一?首?小?诗$"),
  long: patterns(
    "(?:很|超|非常)?(?:长|详细)一?点?的?(?:(?<list>清单|列表)|故事|文章|回答|回复|文字|消息|说明|报告)",
    "(?:说|写|讲)(?:点|些|一段)?(?:很|超)?长的?(?:内容|东西|话|文)?$",
  ),
  code: patterns("代码"),
  story: patterns("故事|文章"),
  joke: patterns("笑话"),
  think: patterns(
    "^(?:仔细|认真|好好)?(?:想一想|想想|想一下|思考一下|思考|考虑一下|考虑)[：:，,]?\\s*(?<topic>.+)$",
  ),
  remind: patterns(
    "^(?:(?<why>[^。！？]+[。！])\\s*)?(?:请)?提醒我(?:要|去|一下)?[：:，,]?\\s*(?<what>.+?)" +
      "(?<question>[，,]\\s*(?:并|再|顺便)?(?:建议|想|提).+)?$",
  ),
  say: patterns(
    "^(?<short>用?一(?:句话|行(?:字|话)?))?(?:跟我说|跟我念|重复|复述|说)(?:一遍|一句|一下)?(?![说个点些明])[：:，,]?\\s*" +
      '[“"]?(?<content>[^“”"]+)[”"]?$',
  ),
  whatDidISay: patterns(
    "我(?:刚才|刚刚|上一句话?)(?:跟你)?(?:说|问|写|讲|是)(?:的|了|过)?是?(?:什么|啥)",
    "我的?上一(?:条消息|句话|个问题)",
  ),
  history: patterns(
    "我之?前?都?(?:跟你|对你|和你)?(?:说|问|讲|告诉|聊)(?:过|了)?你?些?(?:什么|啥|哪些)",
    "我们(?:都)?(?:聊|谈|说|讨论|做)(?:过|了)?些?(?:什么|啥|哪些)",
    "记得(?:我们|这次|这段)的?(?:对话|聊天)",
    "^你?(?:还|都)?记得(?:些)?(?:什么|啥)$",
    "(?:多少|几)(?:条消息|个问题)",
  ),
  calculate: patterns(
    "^(?:计算一下|计算|算一下|算算|算)?\\s*(?<expression>-?[\\d.]+(?:\\s*(?:[-+*/x×÷]|加上?|减去?" +
      "|乘以?|除以)\\s*-?[\\d.]+)+)\\s*(?:[=＝]|等于|是|得)?\\s*(?:几|多少)?$",
  ),
  explain: patterns(
    "^(?:解释|介绍|说明|讲讲|说说|什么是|什么叫)",
    "(?:是什么|什么意思)",
    "怎么(?:工作|运作)",
  ),
  capital: patterns("^(?<place>\\p{L}+?)的首都是?(?:哪个城市|哪里|哪儿|哪|什么)?$"),
};

/** Question words in place of a value: "my name is what" is a question and tells no name. */
const QUESTION_WORD = "(?:什么|啥|谁|哪|多少|几)";
const NAME =
  "(?<value>[\\p{sc=Han}·]{1,6}?(?=[^\\p{sc=Han}·]|$|吧|住在|今年)" +
  "|\\p{Lu}[\\p{L}'-]*(?: \\p{Lu}[\\p{L}'-]*)*|\\p{sc=Latin}+)";
const VALUE = "(?<value>[^，。！？；,.!?;\\n]+)";
const KEY = "(?<key>(?!名字|工作|家(?![\\p{L}]))[\\p{L}\\d]{1,12}?)";

/** What somebody has, in a sentence without "my". */
const OWN =
  "(?:[小]?(?:猫|狗)|宠物|生日|年龄|爱好|老家|家乡|电话|手机号?|邮箱|公司|老板|爸爸|妈妈|妻子|丈夫|女儿|儿子|哥哥|姐姐|弟弟|妹妹)";

const rule = (...sources: string[]) => sources.map((source) => new RegExp(source, "u"));

const FACTS: Language["facts"] = [
  {
    key: "name",
    tell: rule(
      `(?:我|用户)(?:的名字)?叫做?(?!我|${QUESTION_WORD})\\s*${NAME}`,
      `(?:我|用户)的名字是(?!${QUESTION_WORD})\\s*${NAME}`,
      `叫我(?!${QUESTION_WORD})\\s*${NAME}`,
      `^(?:你好|您好|嗨)?[，,！!\\s]*(?:名字)?叫(?!我|${QUESTION_WORD})\\s*${NAME}`,
      `^名字(?:是|[：:])(?!${QUESTION_WORD})\\s*${NAME}`,
      "我是(?<value>[小老阿]\\p{sc=Han})(?=[，。！？,.!?\\s]|$)",
    ),
    ask: rule(
      `我(?:的名字)?(?:叫做?|是)(?:什么|啥|谁)`,
      "(?:知道|记得|说出)我(?:是谁|的名字|吗)",
      "我的名字(?:呢|来着)*[？?。]*$",
      "^名字(?:呢|来着|是)*(?:什么|啥)?(?:来着|呢)*[？?。]*$",
      "^(?:还)?(?:记得|知道)(?:我的)?名字(?:吗)?[？?。]*$",
    ),
  },
  {
    key: "home",
    tell: rule(
      `(?:^|我现?在?|用户|[，,]\\s*)(?:住在|家在|住(?!在))(?!${QUESTION_WORD})\\s*(?<value>[\\p{L}\\d·]+)`,
      `(?:^|我)(?:现在)?在(?<value>[\\p{L}\\d·]+?)住(?=[，。！,.!\\s]|$)`,
    ),
    ask: rule("(?:^|我)现?在?(?:住在|家在|住)(?:哪|什么地方)", "我家在哪", "我在哪[里儿]?住"),
  },
  {
    key: "job",
    tell: rule(
      `(?:我|用户)的(?:工作|职业)是(?!${QUESTION_WORD})${VALUE}`,
      `^(?:工作|职业)(?:是|[：:])(?!${QUESTION_WORD})${VALUE}`,
      `我是一?[名个位](?<value>\\p{L}+)`,
      "我是(?<value>\\p{L}{0,6}(?:员|师|学生|医生|科学家|作家|记者|工人|经理|教授|警察|司机|护士|律师))(?=[，。！,.!\\s]|$)",
      `我在(?!哪|什么)(?<value>[\\p{L}\\d]+?)(?:工作|上班)`,
    ),
    ask: rule(
      "我在哪[里儿]?(?:工作|上班)",
      "我是?(?:做什么的|做什么工作|干什么的|干啥的)",
      "我的工作是什么",
      "^(?:我的)?(?:工作|职业)(?:呢|是|来着)*(?:什么|啥)?[？?。]*$",
    ),
  },
  {
    key: "taste",
    tell: rule(
      `(?:我|用户|^|[，,]\\s*)(?:很|最|特别|非常|也)?(?:喜欢|爱)(?!的|[吃喝看做玩]?${QUESTION_WORD})(?<value>[\\p{L}\\d ]+)`,
    ),
    ask: rule("(?:^|我)(?:最|都)?(?:喜欢|爱)[吃喝看做玩]?(?:什么|啥|哪)(?:来着)?[？?。]*$"),
  },
  {
    key: "年龄",
    tell: rule(
      "(?:我|用户)?今年(?<value>[\\d一二三四五六七八九十百]+岁)",
      "(?:^|我)(?<value>\\d+岁)(?=[，。！,.!\\s了]|$)",
      "的年龄是(?<value>[\\d一二三四五六七八九十百]+岁?)",
    ),
    ask: rule("(?:^|我)(?:今年)?(?:多大|几岁)", "我的年龄"),
  },
  {
    prefix: "最喜欢的",
    tell: rule(
      `(?:^|我|用户|[，,]\\s*)(?:的)?最喜欢的(?<key>\\p{L}{1,10}?)是(?!${QUESTION_WORD})${VALUE}`,
    ),
    ask: rule(
      `最喜欢的(?<key>\\p{L}{1,10}?)是${QUESTION_WORD}`,
      `最喜欢的(?<key>\\p{L}{1,10}?)(?:呢|来着)?[？?]`,
      `最(?:喜欢|爱)(?:[吃喝看玩])?(?:什么|哪种|哪个|哪部|哪本|啥)(?<key>\\p{L}{1,8}?)(?:来着|呢)?[？?。]*$`,
    ),
  },
  {
    // Any other fact, such as "my cat is called Tom" or "my favourite colour is blue".
    tell: rule(
      `(?:我|用户)(?:的|家的?)${KEY}(?:的名字)?(?:叫做?|是)(?!${QUESTION_WORD})${VALUE}`,
      `^(?<key>${OWN})(?:的名字)?(?:叫|是|[：:])(?!${QUESTION_WORD})${VALUE}`,
    ),
    ask: rule(
      `我(?:的|家的?)${KEY}(?:的名字)?(?:叫做?|是)${QUESTION_WORD}`,
      `^(?<key>${OWN})(?:的名字)?(?:叫|是|呢|来着|${QUESTION_WORD}|时候|[一-龥]?天)*[？?。]*$`,
      `(?:知道|记得)我的${KEY}(?:叫什么|是什么|吗)?[？?。]*$`,
    ),
  },
];

const EXPLANATIONS: [RegExp, string][] = [
  [
    /心跳|heartbeat/iu,
    "心跳的时候，没有人问我，我也会看一遍 HEARTBEAT.md。没有要找你的事，我就回答 HEARTBEAT_OK，你什么也不会收到。",
  ],
  [/车道|\blanes?\b/iu, "车道是有上限的队列：同时只跑这么多个任务，其余的按顺序等。"],
  [
    /(?:agent|智能体) ?循环/iu,
    "Agent 循环就是：问模型，运行它调用的工具，把结果交给它，再问，直到它不再调用工具。",
  ],
  [
    /agent|智能体/iu,
    "Agent 就是放在循环里的模型：问一次，模型可以调用工具，看到结果再接着往下走，直到给出答案。",
  ],
  [
    /stop[_ ]?reason|停止原因/iu,
    "停止原因说明回复为什么结束：end_turn 是说完了，tool_use 是要运行工具，max_tokens 是写到上限断掉了。",
  ],
  [/工具/u, "工具是程序里的一个函数，有名字、说明和输入的 schema，模型可以要求运行。"],
  [/网关/u, "网关站在各个平台上的人和回答他们的 Agent 之间：负责路由、记录和投递。"],
  [/token/iu, "token 是一小段文字，一个汉字大约算一个；模型按 token 读写，也按 token 计费。"],
  [/会话/u, "会话就是存下来的一段对话，以后可以接着聊。"],
];

const KNOWN: Record<string, (value: string) => string> = {
  name: (value) => `你叫${spaced(value)}。`,
  home: (value) => `你住在${spaced(value)}。`,
  job: (value) => `你说过你的工作：${value}。`,
  taste: (value) => `你喜欢${spaced(value)}。`,
};

/** A fact in a summary, in words in which the patterns above find it again. */
const NOTED: Record<string, (value: string) => string> = {
  name: (value) => `用户叫${spaced(value)}。`,
  home: (value) => `用户住在${spaced(value)}。`,
  job: (value) => `用户的工作是${spaced(value)}。`,
  taste: (value) => `用户喜欢${spaced(value)}。`,
};

/** Puts a space between Chinese and Latin characters. */
const spaced = (value: string) => (/^[\w`]/.test(value) ? ` ${value}` : value);
/** "my cat", but "I … my favourite colour" without a possessive. */
const of = (person: string, key: string) => `${person}${key.startsWith("最") ? "" : "的"}${key}`;

const BEFORE: Record<Kind, (on: string) => string> = {
  read: (on) => `我来读 ${on}。`,
  run: (on) => `我来运行 \`${on}\`。`,
  write: (on) => `我来写 ${on}。`,
  edit: (on) => `我来改 ${on}。`,
  list: (on) => (on === "." ? "我看看有哪些文件。" : `我看看 ${on} 里有什么。`),
  time: () => "我看一下时间。",
  remember: () => "我记下来。",
  recall: () => "我翻一下记忆。",
};

const RESULTS: Record<string, (on: string, text: string) => string> = {
  read_file: (on, text) => (text ? `${on} 的内容：\n\n${text}` : `${on} 是空的。`),
  bash: (on, text) =>
    !text || text === "(no output)"
      ? `\`${on}\` 运行完了，没有输出。`
      : `\`${on}\` 的输出：\n\n${text}`,
  write_file: (on, text) => `${on} 写好了。（${text}）`,
  edit_file: (on, text) => `${on} 改好了。（${text}）`,
  list_directory: (on, text) =>
    `${on === "." ? "工作区" : `${on} `}里有：\n\n${text || "（什么都没有）"}`,
  get_current_time: (_on, text) => `现在是 ${text}。`,
  memory_write: () => "已经写进记忆了。",
  memory_search: (_on, text) =>
    text && text !== "nothing found" ? `我记得：\n\n${text}` : "这件事我没有印象。",
};

const STORY = [
  "第 % 天，小网关醒得比消息还早，先把自己的车道数了一遍。",
  "第 % 天来了一个问题，很长，网关给它单独开了一个会话。",
  "第 % 天，模型想了一阵，调用了一个工具，把结果读了两遍。",
  "第 % 天，有根网线松了，网关把所有事情都记下来，才敢睡。",
  "第 % 天，两个朋友同时来信，网关按顺序一一回复，两个人都不用等。",
  "第 % 天，什么事都没有，心跳什么也没有发，表示一切正常。",
];

const SENTENCES: Sentences = {
  identity: (persona) =>
    `${persona ? `我在这里叫 ${persona}，不过` : ""}我是这个教程的模拟模型：` +
    "一个按固定规则回答的小程序，不是真正的语言模型。在 .env 里填上密钥，就能和真的模型对话。",
  help: (tools) => {
    const [example] = tools.includes("read_file")
      ? ["（试试“读一下 SOUL.md”）"]
      : [tools.includes("bash") ? "（试试“运行 `ls`”）" : ""];
    return (
      "我是模拟模型，只会几条固定的规则。我能记住你告诉我的事（“我叫小林”）、" +
      "算数（“2+3 等于几”）、数数、讲一个长故事" +
      (tools.length > 0
        ? `，还有这些工具：${tools.join("、")}${example}。`
        : "。我在这里没有工具。")
    );
  },
  noTool: (tools) =>
    tools.length > 0
      ? `做这件事要的工具我没有；我有的是：${tools.join("、")}。`
      : "这个我做不到：我在这里没有工具，只会说话。",
  noClock: "我不知道：我没有钟，也没有能看时间的工具。",
  noMemory: "这段对话里的事我都记得；除此之外，我在这里没有别的记忆。",
  before: (what, on) => BEFORE[what](on),
  result: (tool, on, text) => (RESULTS[tool] ?? (() => `${tool} 返回：\n\n${text}`))(on, text),
  failed: (tool, text) => `没成功。${tool} 说：${text}`,
  greeting: (hour = "你好") => `${hour}！我是模拟模型，只按固定的规则回答。想试试什么？`,
  goodbye: "再见！（输入 quit 退出。）",
  thanks: "不客气。",
  howAreYou: "我是个小程序，谈不上好不好。谢谢关心！",
  told: (key, value) =>
    key === "name" ? `你好，${value}，很高兴认识你。` : `知道了。${SENTENCES.known(key, value)}`,
  known: (key, value) => KNOWN[key]?.(value) ?? `${of("你", key)}是${spaced(value)}。`,
  remembered: (memory) => `我记得这件事：${memory}`,
  unknown: (key) =>
    key in KNOWN && key !== "name"
      ? "我不知道：发给我的消息里，你没有说过。"
      : `我不知道${key === "name" ? "你叫什么" : `${of("你", key)}是什么`}：发给我的消息里没有。`,
  youSaid: (text) => (text ? `你说的是：“${text}”` : "发给我的消息里，你还什么都没说过。"),
  history: (requests) => {
    if (requests.length === 0) return "这是你发给我的第一条消息。";
    const last = requests.slice(-3).map((text) => `“${text}”`);
    return `在这之前，你写过：${requests.length > 3 ? "……" : ""}${last.join("")}。`;
  },
  summary: (facts, files, requests) =>
    [
      "对话摘要。",
      ...facts.map(
        ([key, value]) => NOTED[key]?.(value) ?? `${of("用户", key)}是${spaced(value)}。`,
      ),
      files.length > 0 ? `提到的文件：${files.join("、")}。` : "",
      requests.length > 0
        ? `最近的请求：${requests.map((one) => one.replace(/[。.]$/, "")).join("；")}。`
        : "还没有请求。",
    ].join(""),
  thinking: (topic) => `用户要我想一想${spaced(topic)}。我是按规则办事的程序，想不了多久。`,
  thought: (topic) => `${topic}，我想过了。模拟模型只能想到这里，这个问题还是问真的模型吧。`,
  sum: (expression, value) => `${expression} = ${value}`,
  capital: (place, city) => `${place}的首都是${city}。`,
  haiku: "暗处一圈圈，\n问一声，唤一声，听，\n而后归于静。",
  joke: "Agent 为什么停下来了？因为它没有理由继续。（停止原因：end_turn。）",
  storyLine: (number) => (STORY[number % STORY.length] ?? "").replace("%", String(number + 1)),
  code: "网关用代码写了日记：",
  end: "到现在为止，就是这些。",
  greet: (greeting, name) => `${greeting}${name && `，${name}`}。`,
  reminder: (what, why, question) =>
    `${why}提醒一下：${what}。${question ? "可以问问这一年过得怎么样。" : ""}`,
  noReminder: "到了时间没有人会叫醒我。在 CRON.json 里加一个任务来问我，我就会说。",
  resumed: "搜过了，不过模拟环境没有网络，什么也没找到。",
};

export const CHINESE: Language = {
  script: /^(?!.*[\u3040-\u30ff気円広図実対読売変楽薬働込駅歳]).*\p{sc=Han}/su, // with kana and the like it is Japanese
  patterns: PATTERNS,
  facts: FACTS,
  // A text between “ and ” stays whole.
  separator: new RegExp(
    `\\s*[，；。,;]?\\s*(?:(?<then>然后再?|接着再?|之后再?|再)|并且|并|同时|以及|和|顺便)\\s*(?=${VERB})` +
      `(?![^“]*”)|[，；。,;]\\s*(?=${VERB})(?![^“]*”)`,
    "giu",
  ),
  before:
    /^(?:请|麻烦你?|帮我|帮忙|给我|你?(?:能不能|可不可以|能|可以)|现在|那么|那|然后|再(?!见)|也|先|好的[，,]|嗯|对了|我想(?:让|请)你|来|luna|sage|你好|您好|嗨)[，,、！!\s]*/iu,
  after: /(?:[\s，,]+(?:谢谢你?|好吗|行吗|可以吗))?[吧啊呀]?[\s。.！!？?～~]*$/u,
  pronoun: /^(?:它|这个文件|那个文件)$/u,
  refers: /它|这个文件|那个文件/u,
  isSummary: /^\W*(?:a )?summary of\b|^对话摘要/iu,
  forever: /[，,]?\s*(?:一直|不停地?|不断地?|反复地?|永远|一遍又一遍地?|不要停|别停)\s*/u,
  explanations: EXPLANATIONS,
  operators: [
    [/加上?/gu, "+"],
    [/减去?/gu, "-"],
    [/乘以?|x|×/gu, "*"],
    [/除以|÷/gu, "/"],
  ],
  capitals: {
    法国: "巴黎",
    日本: "东京",
    中国: "北京",
    德国: "柏林",
    意大利: "罗马",
    西班牙: "马德里",
    英国: "伦敦",
    美国: "华盛顿",
    韩国: "首尔",
  },
  gap: "",
  say: SENTENCES,
};
